//! Maps.

use crate::host::env::Env;
use crate::host::map;
use crate::host::term::Term;
use std::ffi::c_int;

/// `ErlNifMapIterator`: the fields that the VM has, of which a map and a position suffice. Nothing is allocated.
#[derive(Debug)]
#[repr(C)]
pub struct Iterator {
    map: Term,
    size: usize,
    /// From 1; 0 is in front of the first pair, `size + 1` behind the last.
    position: usize,
    unused: [usize; 4],
}

const FIRST: c_int = 1;
const LAST: c_int = 2;

unsafe fn slice<'a>(terms: *const Term, count: usize) -> &'a [Term] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the library gives so many terms.
    unsafe { std::slice::from_raw_parts(terms, count) }
}

api! {
    fn enif_is_map(_env: *mut Env, term: Term) -> c_int {
        c_int::from(term.is_map())
    }

    fn enif_get_map_size(_env: *mut Env, term: Term, size: *mut usize) -> c_int {
        if !term.is_map() {
            return 0;
        }
        size.write(map::size(term));
        1
    }

    fn enif_make_new_map(env: *mut Env) -> Term {
        (*env).empty_map()
    }

    fn enif_make_map_put(env: *mut Env, map: Term, key: Term, value: Term, result: *mut Term) -> c_int {
        if !map.is_map() {
            return 0;
        }
        result.write((*env).map_put(map, key, value));
        1
    }

    fn enif_make_map_update(env: *mut Env, map: Term, key: Term, value: Term, result: *mut Term) -> c_int {
        if map::get(map, key).is_none() {
            return 0;
        }
        result.write((*env).map_put(map, key, value));
        1
    }

    fn enif_make_map_remove(env: *mut Env, map: Term, key: Term, result: *mut Term) -> c_int {
        if !map.is_map() {
            return 0;
        }
        result.write((*env).map_remove(map, key));
        1
    }

    fn enif_make_map_from_arrays(
        env: *mut Env,
        keys: *const Term,
        values: *const Term,
        count: usize,
        result: *mut Term,
    ) -> c_int {
        match (*env).map(slice(keys, count), slice(values, count)) {
            Some(map) => {
                result.write(map);
                1
            }
            None => 0,
        }
    }

    fn enif_get_map_value(_env: *mut Env, map: Term, key: Term, value: *mut Term) -> c_int {
        match map::get(map, key) {
            Some(found) => {
                value.write(found);
                1
            }
            None => 0,
        }
    }

    fn enif_map_iterator_create(_env: *mut Env, map: Term, iterator: *mut Iterator, entry: c_int) -> c_int {
        let size = map::size(map);
        let position = match entry {
            FIRST => 1,
            LAST => size,
            _ => return 0,
        };
        if !map.is_map() {
            return 0;
        }
        iterator.write(Iterator { map, size, position, unused: [0; 4] });
        1
    }

    fn enif_map_iterator_destroy(_env: *mut Env, _iterator: *mut Iterator) {}

    fn enif_map_iterator_is_head(_env: *mut Env, iterator: *mut Iterator) -> c_int {
        c_int::from((*iterator).position == 0)
    }

    fn enif_map_iterator_is_tail(_env: *mut Env, iterator: *mut Iterator) -> c_int {
        c_int::from((*iterator).position > (*iterator).size)
    }

    fn enif_map_iterator_next(_env: *mut Env, iterator: *mut Iterator) -> c_int {
        if (*iterator).position <= (*iterator).size {
            (*iterator).position += 1;
        }
        c_int::from((*iterator).position <= (*iterator).size)
    }

    fn enif_map_iterator_prev(_env: *mut Env, iterator: *mut Iterator) -> c_int {
        if (*iterator).position > 0 {
            (*iterator).position -= 1;
        }
        c_int::from((*iterator).position > 0)
    }

    fn enif_map_iterator_get_pair(_env: *mut Env, iterator: *mut Iterator, key: *mut Term, value: *mut Term) -> c_int {
        let Some(position) = (*iterator).position.checked_sub(1) else { return 0 };
        match map::pair((*iterator).map, position) {
            Some((found_key, found)) => {
                key.write(found_key);
                value.write(found);
                1
            }
            None => 0,
        }
    }
}
