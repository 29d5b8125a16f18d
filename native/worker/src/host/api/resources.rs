//! Resources.

use crate::host::atom;
use crate::host::buffer::Buffer;
use crate::host::env::Env;
use crate::host::option;
use crate::host::resource::{self, Callbacks, Destructor, Object, Type};
use crate::host::term::Term;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

const CREATE: c_int = 1;
const TAKEOVER: c_int = 2;

const NONE: Callbacks = Callbacks::NONE;

/// Opens a type in the load or upgrade callback: makes one, or takes one over that another library of the module has.
unsafe fn open(
    env: *mut Env,
    name: *const c_char,
    callbacks: Callbacks,
    flags: c_int,
    tried: *mut c_int,
) -> *const Type {
    // SAFETY: the library's env, name and out-parameter.
    unsafe {
        let mut operation = flags;
        let opened = (|| {
            let library = (*env).library.filter(|library| option::is_loading(library))?;
            let name = atom::make(&atom::from_latin1(CStr::from_ptr(name).to_bytes()))?;
            match resource::find(library.module, name) {
                Some(kind) if flags & TAKEOVER != 0 => {
                    operation = TAKEOVER;
                    resource::take_over(kind, callbacks);
                    Some(kind)
                }
                None if flags & CREATE != 0 => {
                    operation = CREATE;
                    Some(resource::create(library, name, callbacks))
                }
                _ => None,
            }
        })();
        if !tried.is_null() {
            tried.write(operation);
        }
        opened.map_or(ptr::null(), ptr::from_ref)
    }
}

/// The object of a term: a resource's, or that of a binary over its memory.
unsafe fn object(term: Term) -> Option<*mut Object> {
    if let Some(object) = term.as_resource() {
        return Some(object);
    }
    let owner = term.as_binary()?.owner;
    if owner.is_null() {
        return None;
    }
    // SAFETY: the term's env holds its owner.
    let object = unsafe { Buffer::object(owner) };
    (!object.is_null()).then_some(object)
}

/// The callbacks that a library of before 2.16 has: three, without `members`.
unsafe fn three(init: *const Callbacks) -> Callbacks {
    // SAFETY: the struct begins with these in every version.
    unsafe {
        Callbacks {
            destructor: (*init).destructor,
            stop: (*init).stop,
            down: (*init).down,
            ..NONE
        }
    }
}

api! {
    fn enif_open_resource_type(
        env: *mut Env,
        // The VM takes no notice of it.
        _module: *const c_char,
        name: *const c_char,
        destructor: Option<Destructor>,
        flags: c_int,
        tried: *mut c_int,
    ) -> *const Type {
        open(env, name, Callbacks { destructor, ..NONE }, flags, tried)
    }

    fn enif_open_resource_type_x(
        env: *mut Env,
        name: *const c_char,
        init: *const Callbacks,
        flags: c_int,
        tried: *mut c_int,
    ) -> *const Type {
        open(env, name, three(init), flags, tried)
    }

    fn enif_init_resource_type(
        env: *mut Env,
        name: *const c_char,
        init: *const Callbacks,
        flags: c_int,
        tried: *mut c_int,
    ) -> *const Type {
        // `members` says how many of the four callbacks are there.
        let mut callbacks = NONE;
        let members = (*init).members;
        if members >= 1 {
            callbacks.destructor = (*init).destructor;
        }
        if members >= 2 {
            callbacks.stop = (*init).stop;
        }
        if members >= 3 {
            callbacks.down = (*init).down;
        }
        if members >= 4 {
            callbacks.dynamic_call = (*init).dynamic_call;
        }
        open(env, name, callbacks, flags, tried)
    }

    fn enif_alloc_resource(kind: *const Type, size: usize) -> *mut c_void {
        let object = resource::allocate(kind, size);
        if object.is_null() { ptr::null_mut() } else { resource::data(object) }
    }

    fn enif_release_resource(data: *mut c_void) {
        resource::release(resource::of_data(data));
    }

    fn enif_keep_resource(data: *mut c_void) {
        resource::keep(resource::of_data(data));
    }

    fn enif_sizeof_resource(data: *mut c_void) -> usize {
        resource::size(resource::of_data(data))
    }

    fn enif_make_resource(env: *mut Env, data: *mut c_void) -> Term {
        (*env).share_object(resource::of_data(data))
    }

    fn enif_make_resource_binary(env: *mut Env, data: *mut c_void, bytes: *const c_void, size: usize) -> Term {
        let object = resource::of_data(data);
        resource::keep(object);
        let owner = Buffer::of_object(object);
        if owner.is_null() {
            resource::release(object);
            return (*env).bad_argument();
        }
        (*env).owned_binary(owner, bytes.cast_mut().cast(), size, 0)
    }

    fn enif_get_resource(_env: *mut Env, term: Term, kind: *const Type, data: *mut *mut c_void) -> c_int {
        match object(term) {
            Some(object) if ptr::eq(resource::kind(object), kind) => {
                data.write(resource::data(object));
                1
            }
            _ => 0,
        }
    }

    fn enif_dynamic_resource_call(env: *mut Env, module: Term, name: Term, term: Term, call_data: *mut c_void) -> c_int {
        // A binary over an object is none here.
        let Some(object) = term.as_resource() else { return 1 };
        let kind = &*resource::kind(object);
        if kind.module != module || kind.name != name {
            return 1;
        }
        let called = kind.run(
            |callbacks| callbacks.dynamic_call,
            |call, _owner| call(env, resource::data(object), call_data),
        );
        c_int::from(!called)
    }
}
