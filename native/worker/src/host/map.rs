//! Maps.
//!
//! Flat: keys, then values, in the order in which they came (from the VM: its own, so that a library walks a map here as
//! it would there). Up to 32 pairs a key is looked for one after the other, above through an index of hash values that
//! is made with the map. A map of more than 32 pairs that a pair is put into becomes a trie, whose parts are shared from
//! one version to the next.
//!
//! ```text
//! flat        header: pairs << 8      address of the index, or 0      keys      values
//! index       mask      mask + 1 words: 0 or position + 1
//! trie        header: pairs << 8      root
//! node        header: pairs << 24 | bitmap << 8      a child for each bit: a cell (key . value), a node, a collision
//! collision   header: pairs << 24     cells of equal hash values
//! ```

use super::env::Env;
use super::hash;
use super::order::identical;
use super::term::{Cons, Term, kind};

const FLAT: usize = 32;
/// Four bits of the hash value for each level.
const LEVELS: u32 = 16;

#[derive(Debug, Clone, Copy)]
struct Flat<'a> {
    index: &'a [u64],
    keys: &'a [Term],
    values: &'a [Term],
}

fn flat<'a>(map: Term) -> Option<Flat<'a>> {
    let place = map.pointer()?;
    let header = map.header().filter(|header| header & 0xFF == kind::MAP_FLAT)?;
    let count = (header >> 8) as usize;
    // SAFETY: `make` writes an index address and twice `count` words behind the header; an index has as many words as
    // its mask says and one.
    unsafe {
        let index = *place.add(1) as *const u64;
        let index = if index.is_null() {
            &[]
        } else {
            std::slice::from_raw_parts(index.add(1), *index as usize + 1)
        };
        let keys = place.add(2).cast::<Term>();
        Some(Flat {
            index,
            keys: std::slice::from_raw_parts(keys, count),
            values: std::slice::from_raw_parts(keys.add(count), count),
        })
    }
}

impl Flat<'_> {
    fn find(&self, key: Term) -> Option<usize> {
        if self.index.is_empty() {
            return self.keys.iter().position(|found| identical(*found, key));
        }
        slot(self.index, self.keys, key).err()
    }
}

/// Where a key would be entered (`Ok`), or the position that it has (`Err`).
fn slot(index: &[u64], keys: &[Term], key: Term) -> Result<usize, usize> {
    let mask = index.len() - 1;
    let mut slot = hash::key(key) as usize & mask;
    loop {
        match index[slot] {
            0 => return Ok(slot),
            position if identical(keys[position as usize - 1], key) => return Err(position as usize - 1),
            _ => slot = (slot + 1) & mask,
        }
    }
}

/// The number of pairs; 0 for what is not a map.
pub fn size(map: Term) -> usize {
    if map.is_map() {
        map.header().map_or(0, |header| (header >> 8) as usize)
    } else {
        0
    }
}

pub fn get(map: Term, key: Term) -> Option<Term> {
    match flat(map) {
        Some(flat) => flat.find(key).map(|position| flat.values[position]),
        None => find(root(map)?, key, hash::key(key)),
    }
}

fn root(map: Term) -> Option<Term> {
    let place = map.pointer().filter(|_| map.is_kind(kind::MAP_TRIE))?;
    // SAFETY: a trie's header is followed by its root.
    Some(unsafe { *place.add(1).cast() })
}

/// A node or collision: its bitmap (0 for a collision) and its children.
fn node<'a>(node: Term) -> Option<(u16, &'a [Term])> {
    let place = node.pointer()?;
    let header = node.header()?;
    let bitmap = (header >> 8) as u16;
    let children = match header & 0xFF {
        kind::NODE => bitmap.count_ones() as usize,
        kind::COLLISION => (header >> 24) as usize,
        _ => return None,
    };
    // SAFETY: so many words follow the header of either kind.
    Some((bitmap, unsafe {
        std::slice::from_raw_parts(place.add(1).cast(), children)
    }))
}

fn find(root: Term, key: Term, hash: u64) -> Option<Term> {
    let mut here = root;
    let mut level = 0;
    loop {
        if let Some(cell) = here.as_cons() {
            return identical(cell.head, key).then_some(cell.tail);
        }
        let (bitmap, children) = node(here)?;
        if bitmap == 0 {
            let mut cells = children.iter().filter_map(|cell| cell.as_cons());
            return cells.find(|cell| identical(cell.head, key)).map(|cell| cell.tail);
        }
        let (bit, position) = place(bitmap, hash, level);
        if bitmap & bit == 0 {
            return None;
        }
        here = children[position];
        level += 1;
    }
}

/// The bit of a hash value at a level, and the position among the children.
fn place(bitmap: u16, hash: u64, level: u32) -> (u16, usize) {
    let bit = 1_u16 << (hash >> (4 * level) & 15);
    (bit, (bitmap & (bit - 1)).count_ones() as usize)
}

/// Pairs below a child.
fn pairs_below(child: Term) -> usize {
    child.header().map_or(1, |header| (header >> 24) as usize)
}

/// A walk through a map, also by `ErlNifMapIterator`, which keeps map and position only.
#[derive(Debug, Clone)]
pub struct Pairs {
    map: Term,
    next: usize,
    size: usize,
}

pub fn pairs(map: Term) -> Pairs {
    Pairs {
        map,
        next: 0,
        size: size(map),
    }
}

impl Iterator for Pairs {
    type Item = (Term, Term);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.size {
            return None;
        }
        self.next += 1;
        pair(self.map, self.next - 1)
    }
}

/// The pair at a position.
pub fn pair(map: Term, position: usize) -> Option<(Term, Term)> {
    if let Some(flat) = flat(map) {
        return Some((*flat.keys.get(position)?, *flat.values.get(position)?));
    }
    let mut here = root(map)?;
    let mut left = position;
    loop {
        if let Some(cell) = here.as_cons() {
            return (left == 0).then_some((cell.head, cell.tail));
        }
        let (_, children) = node(here)?;
        let mut chosen = None;
        for child in children {
            let below = pairs_below(*child);
            if left < below {
                chosen = Some(*child);
                break;
            }
            left -= below;
        }
        here = chosen?;
    }
}

impl Env {
    pub fn empty_map(&mut self) -> Term {
        self.flat(&[], &[])
    }

    fn flat(&mut self, keys: &[Term], values: &[Term]) -> Term {
        let count = keys.len();
        let header = self.allocate(2 + 2 * count);
        // SAFETY: so many words were just allocated.
        unsafe {
            header.write((count as u64) << 8 | kind::MAP_FLAT);
            header.add(1).write(0);
            let place = header.add(2).cast::<Term>();
            std::ptr::copy_nonoverlapping(keys.as_ptr(), place, count);
            std::ptr::copy_nonoverlapping(values.as_ptr(), place.add(count), count);
        }
        Term::boxed(header)
    }

    /// A map of these pairs, which are equally many; `None` if a key is there twice.
    pub fn map(&mut self, keys: &[Term], values: &[Term]) -> Option<Term> {
        if keys.len() <= FLAT {
            let twice =
                |(position, key): (usize, &Term)| keys[..position].iter().any(|other| identical(*other, *key));
            return (!keys.iter().enumerate().any(twice)).then(|| self.flat(keys, values));
        }
        let slots = (keys.len() * 2).next_power_of_two();
        let words = self.allocate(1 + slots);
        // SAFETY: so many words were just allocated, and all are written before they are read.
        let index = unsafe {
            words.write(slots as u64 - 1);
            std::ptr::write_bytes(words.add(1), 0, slots);
            std::slice::from_raw_parts_mut(words.add(1), slots)
        };
        for (position, key) in keys.iter().enumerate() {
            let free = slot(index, keys, *key).ok()?;
            index[free] = position as u64 + 1;
        }
        let map = self.flat(keys, values);
        if let Some(header) = map.pointer() {
            // SAFETY: the word behind the header of a flat map is for the index; nobody has seen this map yet.
            unsafe { header.add(1).cast_mut().write(words as u64) };
        }
        Some(map)
    }

    /// `map` is a map.
    pub fn map_put(&mut self, map: Term, key: Term, value: Term) -> Term {
        let Some(old) = flat(map) else {
            return self.trie_put(map, key, value);
        };
        let found = old.find(key);
        if let Some(position) = found
            && old.values[position] == value
        {
            return map;
        }
        if old.keys.len() > FLAT || (found.is_none() && old.keys.len() == FLAT) {
            let map = self.trie_of(&old);
            return self.trie_put(map, key, value);
        }
        let (mut keys, mut values) = ([Term::NIL; FLAT], [Term::NIL; FLAT]);
        let count = old.keys.len();
        keys[..count].copy_from_slice(old.keys);
        values[..count].copy_from_slice(old.values);
        let position = found.unwrap_or(count);
        keys[position] = key;
        values[position] = value;
        let count = count.max(position + 1);
        self.flat(&keys[..count], &values[..count])
    }

    /// The same map if the key is not there.
    pub fn map_remove(&mut self, map: Term, key: Term) -> Term {
        if get(map, key).is_none() {
            return map;
        }
        let kept = pairs(map).filter(|(other, _)| !identical(*other, key));
        let (keys, values): (Vec<_>, Vec<_>) = kept.unzip();
        self.map(&keys, &values).unwrap_or(map)
    }

    fn trie_of(&mut self, flat: &Flat<'_>) -> Term {
        let empty = self.node(kind::NODE, 0, 0, &[]);
        let root = flat.keys.iter().zip(flat.values).fold(empty, |root, (key, value)| {
            let cell = self.cons(*key, *value);
            self.insert(root, cell, hash::key(*key), 0)
        });
        self.trie(root)
    }

    fn trie(&mut self, root: Term) -> Term {
        let place = self.allocate(2);
        // SAFETY: two words were just allocated.
        unsafe {
            place.write((pairs_below(root) as u64) << 8 | kind::MAP_TRIE);
            place.add(1).cast::<Term>().write(root);
        }
        Term::boxed(place)
    }

    fn trie_put(&mut self, map: Term, key: Term, value: Term) -> Term {
        let Some(old) = root(map) else { return map };
        let cell = self.cons(key, value);
        let root = self.insert(old, cell, hash::key(key), 0);
        self.trie(root)
    }

    fn node(&mut self, kind: u64, bitmap: u16, pairs: usize, children: &[Term]) -> Term {
        let place = self.allocate(1 + children.len());
        // SAFETY: so many words were just allocated.
        unsafe {
            place.write((pairs as u64) << 24 | u64::from(bitmap) << 8 | kind);
            std::ptr::copy_nonoverlapping(children.as_ptr(), place.add(1).cast(), children.len());
        }
        Term::boxed(place)
    }

    /// A version of `here` with this cell in it. Recurses as deep as the trie, [`LEVELS`] and one at most.
    fn insert(&mut self, here: Term, cell: Term, hash: u64, level: u32) -> Term {
        let Some(new) = cell.as_cons() else { return here };
        if let Some(old) = here.as_cons() {
            return self.insert_beside(here, old, cell, new, hash, level);
        }
        let Some((bitmap, children)) = node(here) else {
            return here;
        };
        let pairs = pairs_below(here);
        if bitmap == 0 && level >= LEVELS {
            let same = |child: &Term| child.as_cons().is_some_and(|old| identical(old.head, new.head));
            let mut cells = children.to_vec();
            match children.iter().position(same) {
                Some(position) => cells[position] = cell,
                None => cells.push(cell),
            }
            return self.node(kind::COLLISION, 0, cells.len(), &cells);
        }
        let (bit, position) = place(bitmap, hash, level);
        let mut copy = [Term::NIL; 16];
        let count = children.len();
        if bitmap & bit == 0 {
            copy[..position].copy_from_slice(&children[..position]);
            copy[position] = cell;
            copy[position + 1..=count].copy_from_slice(&children[position..]);
            return self.node(kind::NODE, bitmap | bit, pairs + 1, &copy[..=count]);
        }
        let child = self.insert(children[position], cell, hash, level + 1);
        copy[..count].copy_from_slice(children);
        copy[position] = child;
        let pairs = pairs - pairs_below(children[position]) + pairs_below(child);
        self.node(kind::NODE, bitmap, pairs, &copy[..count])
    }

    fn insert_beside(&mut self, here: Term, old: &Cons, cell: Term, new: &Cons, hash: u64, level: u32) -> Term {
        if identical(old.head, new.head) {
            return cell;
        }
        if level >= LEVELS {
            return self.node(kind::COLLISION, 0, 2, &[here, cell]);
        }
        let (bit, _) = place(0, hash::key(old.head), level);
        let alone = self.node(kind::NODE, bit, 1, &[here]);
        self.insert(alone, cell, hash, level)
    }
}
