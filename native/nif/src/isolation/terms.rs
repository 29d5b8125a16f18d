//! The VM's terms for the codec: [`VmReader`] looks at them, [`VmBuilder`] makes them.
//!
//! What the functions of the VM do not give (the digits of big integers, bit strings, atoms beyond Latin-1, the order of
//! names) goes through the external format of that one term.

use super::effort::{self, Effort};
use super::failure::{Unmakeable, Unreadable};
use super::handle::{Handle, Ref};
use super::monitors::Watcher;
use super::names::{Holder, Names};
use super::recent_atoms;
use super::remote::Remote;
use super::worker::Worker;
use parking_lot::Mutex;
use rustler::sys::{
    ErlNifBinary, ErlNifCharEncoding, ErlNifEnv, ErlNifMapIterator, ErlNifMapIteratorEntry, ErlNifTerm,
    ErlNifTermType, enif_alloc_binary, enif_binary_to_term, enif_get_atom, enif_get_double, enif_get_int64,
    enif_get_list_cell, enif_get_local_pid, enif_get_local_port, enif_get_map_size, enif_get_tuple, enif_get_uint64,
    enif_inspect_binary, enif_make_atom_len, enif_make_binary, enif_make_double, enif_make_existing_atom_len,
    enif_make_int64, enif_make_list_cell, enif_make_list_from_array, enif_make_map_from_arrays, enif_make_new_binary,
    enif_make_tuple_from_array, enif_make_uint64, enif_map_iterator_create, enif_map_iterator_destroy,
    enif_map_iterator_get_pair, enif_map_iterator_next, enif_release_binary, enif_term_to_binary, enif_term_type,
};
use rustler::{Env, Term};
use snakepit_wire::{Builder, Name, NameKind, Payload, Reader, Source, View};
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::Arc;

const LATIN1: ErlNifCharEncoding = ErlNifCharEncoding::ERL_NIF_LATIN1;
/// 255 characters of up to 4 bytes.
const ATOM_BYTES: usize = 1020;
/// From here on a binary may be refused by the allocator instead of ending the VM.
const LARGE: usize = 1 << 20;

/// External format, after the version byte.
mod etf {
    pub const VERSION: u8 = 131;
    pub const SMALL_BIG: u8 = 110;
    pub const LARGE_BIG: u8 = 111;
    pub const ATOM_UTF8: u8 = 118;
    pub const SMALL_ATOM_UTF8: u8 = 119;
    pub const BIT_BINARY: u8 = 77;
}

/// The external format of one term.
#[derive(Debug)]
struct External(ErlNifBinary);

impl External {
    fn of(env: *mut ErlNifEnv, term: ErlNifTerm) -> Option<Self> {
        let mut binary = MaybeUninit::uninit();
        // SAFETY: the term is of the environment; the binary is filled in when the answer is not 0.
        unsafe { (enif_term_to_binary(env, term, binary.as_mut_ptr()) != 0).then(|| External(binary.assume_init())) }
    }

    fn whole(&self) -> &[u8] {
        // SAFETY: the VM's allocation, alive until we release it.
        unsafe { std::slice::from_raw_parts(self.0.data, self.0.size) }
    }

    /// Without the version byte.
    fn body(&self) -> &[u8] {
        self.whole().get(1..).unwrap_or_default()
    }
}

impl Drop for External {
    fn drop(&mut self) {
        // SAFETY: made by `of`, released once.
        unsafe { enif_release_binary(&raw mut self.0) };
    }
}

/// The term that an external format says. `safe`: no new atom.
fn from_external(env: *mut ErlNifEnv, bytes: &[u8], safe: bool) -> Option<ErlNifTerm> {
    let mut term = MaybeUninit::uninit();
    let options = if safe { rustler::sys::ERL_NIF_BIN2TERM_SAFE } else { 0 };
    // SAFETY: the bytes are private; the term is filled in when the answer is not 0.
    unsafe {
        (enif_binary_to_term(env, bytes.as_ptr(), bytes.len(), term.as_mut_ptr(), options) != 0)
            .then(|| term.assume_init())
    }
}

/// Buffers that last from call to call.
#[derive(Debug)]
pub struct Buffers {
    text: [u8; ATOM_BYTES],
    bytes: Vec<u8>,
}

impl Buffers {
    pub const fn new() -> Self {
        Buffers {
            text: [0; ATOM_BYTES],
            bytes: Vec::new(),
        }
    }
}

/// Whom a term is for.
#[derive(Debug)]
pub struct Destination<'a> {
    pub incarnation: u64,
    pub names: &'a Mutex<Names>,
    /// Names that are to be forgotten when the call is over.
    pub kept: &'a mut Vec<Name>,
}

#[derive(Debug)]
pub struct VmReader<'a> {
    env: *mut ErlNifEnv,
    to: Destination<'a>,
    buffers: &'a mut Buffers,
}

/// A walk through a map.
pub struct Pairs {
    env: *mut ErlNifEnv,
    iterator: ErlNifMapIterator,
}

impl Drop for Pairs {
    fn drop(&mut self) {
        // SAFETY: created with this environment, which is still alive: the encoder is done before the call is.
        unsafe { enif_map_iterator_destroy(self.env, &raw mut self.iterator) };
    }
}

impl<'a> VmReader<'a> {
    /// # Safety
    /// `env` outlives the reader and everything that it hands out, and belongs to this thread.
    pub unsafe fn new(env: *mut ErlNifEnv, to: Destination<'a>, buffers: &'a mut Buffers) -> Self {
        VmReader { env, to, buffers }
    }

    fn external(&self, term: ErlNifTerm) -> Result<External, Unreadable> {
        External::of(self.env, term).ok_or(Unreadable::Odd)
    }

    fn key(&mut self, term: ErlNifTerm) -> Result<(), Unreadable> {
        let external = self.external(term)?;
        self.buffers.bytes.clear();
        self.buffers.bytes.extend_from_slice(external.body());
        Ok(())
    }

    #[cold]
    fn big(&mut self, term: ErlNifTerm) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        self.key(term)?;
        let (negative, magnitude) = match self.buffers.bytes.as_slice() {
            [etf::SMALL_BIG, _, sign, magnitude @ ..] | [etf::LARGE_BIG, _, _, _, _, sign, magnitude @ ..] => {
                (*sign != 0, magnitude)
            }
            _ => return Err(Unreadable::Odd),
        };
        Ok(View::Big { negative, magnitude })
    }

    #[cold]
    fn bits(&mut self, term: ErlNifTerm) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        self.key(term)?;
        match self.buffers.bytes.as_slice() {
            [etf::BIT_BINARY, _, _, _, _, last, bytes @ ..] => Ok(View::Bits { bytes, last: *last }),
            _ => Err(Unreadable::Odd),
        }
    }

    /// An atom that has characters beyond Latin-1.
    #[cold]
    fn wide_atom(&mut self, term: ErlNifTerm) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        self.key(term)?;
        let text = match self.buffers.bytes.as_slice() {
            [etf::SMALL_ATOM_UTF8, _, text @ ..] | [etf::ATOM_UTF8, _, _, text @ ..] => text,
            _ => return Err(Unreadable::Odd),
        };
        str::from_utf8(text).map(View::Atom).map_err(|_| Unreadable::Odd)
    }

    fn atom(&mut self, term: ErlNifTerm) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        let mut length = {
            let text = self.buffers.text.as_mut_ptr().cast();
            // SAFETY: 256 bytes at most are written: 255 characters and a zero. The answer counts the zero, 0 is a
            // failure.
            unsafe { enif_get_atom(self.env, term, text, 256, LATIN1) as usize }
        };
        if length == 0 {
            return self.wide_atom(term);
        }
        length -= 1;
        if !self.buffers.text[..length].is_ascii() {
            length = widen(&mut self.buffers.text, length);
        }
        // ASCII, or what `widen` has made of Latin-1.
        str::from_utf8(&self.buffers.text[..length])
            .map(View::Atom)
            .map_err(|_| Unreadable::Odd)
    }

    #[cold]
    fn name(
        &mut self,
        kind: NameKind,
        term: ErlNifTerm,
    ) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        let env = self.env;
        let name = if is_local(env, kind, term) {
            let (name, key) = self.to.names.lock().local(env, kind, term, || key(env, term))?;
            self.buffers.bytes.clear();
            self.buffers.bytes.extend_from_slice(&key);
            name
        } else {
            self.key(term)?;
            let words = self.buffers.bytes.len() as u64;
            let name = self.to.names.lock().keep(env, kind, term, words, Holder::Call)?;
            self.to.kept.push(name);
            name
        };
        Ok(View::Name {
            name,
            key: &self.buffers.bytes,
        })
    }

    #[cold]
    fn reference(&mut self, term: ErlNifTerm) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        if let Some(remote) = remote(self.env, term) {
            return if remote.0 == self.to.incarnation {
                Ok(View::Resource(remote.1))
            } else {
                Err(Unreadable::Elsewhere(remote.0))
            };
        }
        self.name(NameKind::Reference, term)
    }
}

/// Incarnation and number of a worker's object, if the term is one.
fn remote(env: *mut ErlNifEnv, term: ErlNifTerm) -> Option<(u64, u64)> {
    // SAFETY: the environment is alive for as long as the value, which does not leave this function.
    let term = unsafe { Term::new(Env::new(&(), env), term) };
    if let Ok(remote) = Ref::<Remote>::of(term) {
        return Some((remote.incarnation(), remote.id()));
    }
    let watcher = Ref::<Watcher>::of(term).ok()?;
    Some((watcher.incarnation(), watcher.id()))
}

/// Whether it is one word.
fn is_local(env: *mut ErlNifEnv, kind: NameKind, term: ErlNifTerm) -> bool {
    // SAFETY: the term is of the environment; what is filled in is not read.
    unsafe {
        match kind {
            NameKind::Pid => enif_get_local_pid(env, term, MaybeUninit::uninit().as_mut_ptr()) != 0,
            NameKind::Port => enif_get_local_port(env, term, MaybeUninit::uninit().as_mut_ptr()) != 0,
            NameKind::Reference | NameKind::Fun => false,
        }
    }
}

/// Latin-1 to UTF-8 in place; answers the new length.
fn widen(text: &mut [u8; ATOM_BYTES], length: usize) -> usize {
    let mut latin1 = [0; 256];
    latin1[..length].copy_from_slice(&text[..length]);
    let mut end = 0;
    for byte in &latin1[..length] {
        end += char::from(*byte).encode_utf8(&mut text[end..]).len();
    }
    end
}

impl Reader for VmReader<'_> {
    type Term = ErlNifTerm;
    type Tuple = *const ErlNifTerm;
    type Pairs = Pairs;
    type Refusal = Unreadable;

    #[inline]
    fn view(&mut self, term: ErlNifTerm) -> Result<View<'_, ErlNifTerm, *const ErlNifTerm>, Unreadable> {
        use ErlNifTermType as T;
        let env = self.env;
        // SAFETY: for the whole function: the term is of the environment, which is alive; what the VM fills in is read
        // only after it has said that it did.
        match unsafe { enif_term_type(env, term) } {
            T::ERL_NIF_TERM_TYPE_INTEGER => {
                let mut small = 0;
                // SAFETY: see above.
                if unsafe { enif_get_int64(env, term, &raw mut small) } != 0 {
                    return Ok(View::Integer(small));
                }
                let mut large = 0;
                // SAFETY: see above.
                if unsafe { enif_get_uint64(env, term, &raw mut large) } != 0 {
                    return Ok(View::Unsigned(large));
                }
                self.big(term)
            }
            T::ERL_NIF_TERM_TYPE_ATOM => self.atom(term),
            T::ERL_NIF_TERM_TYPE_LIST => Ok(self.cell(term).map_or(View::Nil, |(head, tail)| View::Cons(head, tail))),
            T::ERL_NIF_TERM_TYPE_TUPLE => {
                let (mut arity, mut elements) = (0, std::ptr::null());
                // SAFETY: see above.
                match unsafe { enif_get_tuple(env, term, &raw mut arity, &raw mut elements) } {
                    0 => Err(Unreadable::Odd),
                    _ => Ok(View::Tuple(elements, arity as usize)),
                }
            }
            T::ERL_NIF_TERM_TYPE_BITSTRING => {
                let mut binary = MaybeUninit::uninit();
                // SAFETY: see above. The bytes live as long as the environment.
                unsafe {
                    if enif_inspect_binary(env, term, binary.as_mut_ptr()) == 0 {
                        return self.bits(term);
                    }
                    let ErlNifBinary { data, size, .. } = binary.assume_init();
                    // An empty one may have no address.
                    Ok(View::Binary(if size == 0 {
                        &[]
                    } else {
                        std::slice::from_raw_parts(data, size)
                    }))
                }
            }
            T::ERL_NIF_TERM_TYPE_MAP => {
                let mut size = 0;
                // SAFETY: see above.
                unsafe { enif_get_map_size(env, term, &raw mut size) };
                Ok(View::Map(size))
            }
            T::ERL_NIF_TERM_TYPE_FLOAT => {
                let mut value = 0.0;
                // SAFETY: see above.
                unsafe { enif_get_double(env, term, &raw mut value) };
                Ok(View::Float(value))
            }
            T::ERL_NIF_TERM_TYPE_PID => self.name(NameKind::Pid, term),
            T::ERL_NIF_TERM_TYPE_PORT => self.name(NameKind::Port, term),
            T::ERL_NIF_TERM_TYPE_REFERENCE => self.reference(term),
            T::ERL_NIF_TERM_TYPE_FUN => self.name(NameKind::Fun, term),
            T::ERL_NIF_TERM_TYPE__MISSING_DEFAULT_CASE__READ_THE_MANUAL => Err(Unreadable::Odd),
        }
    }

    #[inline]
    fn cell(&mut self, term: ErlNifTerm) -> Option<(ErlNifTerm, ErlNifTerm)> {
        let (mut head, mut tail) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the term is of the environment; both are filled in when the answer is not 0.
        unsafe {
            (enif_get_list_cell(self.env, term, head.as_mut_ptr(), tail.as_mut_ptr()) != 0)
                .then(|| (head.assume_init(), tail.assume_init()))
        }
    }

    #[inline]
    fn element(&mut self, tuple: *const ErlNifTerm, index: usize) -> ErlNifTerm {
        // SAFETY: the VM's own elements, which do not move during a call; the index is below the arity.
        unsafe { tuple.add(index).read() }
    }

    fn pairs(&mut self, map: ErlNifTerm) -> Result<Pairs, Unreadable> {
        let mut iterator = MaybeUninit::uninit();
        let entry = ErlNifMapIteratorEntry::ERL_NIF_MAP_ITERATOR_HEAD;
        // SAFETY: the term is of the environment; the iterator is filled in when the answer is not 0.
        unsafe {
            match enif_map_iterator_create(self.env, map, iterator.as_mut_ptr(), entry) {
                0 => Err(Unreadable::Odd),
                _ => Ok(Pairs {
                    env: self.env,
                    iterator: iterator.assume_init(),
                }),
            }
        }
    }

    fn next_pair(&mut self, pairs: &mut Pairs) -> Option<(ErlNifTerm, ErlNifTerm)> {
        let (mut key, mut value) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: as for `pairs`.
        unsafe {
            let found =
                enif_map_iterator_get_pair(self.env, &raw mut pairs.iterator, key.as_mut_ptr(), value.as_mut_ptr());
            (found != 0).then(|| {
                enif_map_iterator_next(self.env, &raw mut pairs.iterator);
                (key.assume_init(), value.assume_init())
            })
        }
    }
}

/// Who made the terms that are decoded, if a worker did.
#[derive(Debug)]
pub struct VmBuilder<'a> {
    env: *mut ErlNifEnv,
    from: Option<&'a Worker>,
    /// Names of this payload whose terms were copied: once each, however often they come. Else fourteen bytes would buy a
    /// copy of a fun of any size.
    copies: Option<HashMap<Name, ErlNifTerm>>,
    /// Words that such copies may still take.
    spare: u64,
    effort: &'a mut Effort,
}

impl<'a> VmBuilder<'a> {
    /// # Safety
    /// `env` outlives the builder, and belongs to this thread.
    #[inline]
    pub unsafe fn new(env: *mut ErlNifEnv, from: Option<&'a Worker>, effort: &'a mut Effort) -> Self {
        VmBuilder {
            env,
            from,
            effort,
            // Not made before it is needed: even an empty one costs a look at the thread's keys.
            copies: None,
            spare: from.map_or(0, |worker| worker.limits().words),
        }
    }

    /// Words that copies of names have taken.
    pub fn copied(&self) -> u64 {
        let whole = self.from.map_or(0, |worker| worker.limits().words);
        whole - self.spare
    }

    #[inline]
    fn takes(&mut self, quarters: u64) -> Result<(), Unmakeable> {
        if self.effort.takes(quarters) {
            Ok(())
        } else {
            Err(Unmakeable::Dear)
        }
    }

    fn external(&mut self, bytes: &[u8]) -> Result<ErlNifTerm, Unmakeable> {
        self.takes(effort::EXTERNAL)?;
        from_external(self.env, bytes, true).ok_or(Unmakeable::Refused)
    }

    fn charge_atom(&self) -> Result<(), Unmakeable> {
        match self.from {
            Some(worker) => worker.atoms().charge().map_err(|limit| Unmakeable::Atoms { limit }),
            None => Err(Unmakeable::Atoms { limit: 0 }),
        }
    }

    /// An atom in Latin-1.
    #[inline]
    fn narrow_atom(&mut self, text: &[u8]) -> Result<ErlNifTerm, Unmakeable> {
        self.takes(effort::ATOM)?;
        // A longer one would be no term at all.
        if text.len() > 255 {
            return Err(Unmakeable::Refused);
        }
        let mut atom = MaybeUninit::uninit();
        let name = text.as_ptr().cast();
        // SAFETY: the text is as long as it says; the atom is filled in when the answer is not 0.
        unsafe {
            if enif_make_existing_atom_len(self.env, name, text.len(), atom.as_mut_ptr(), LATIN1) != 0 {
                return Ok(atom.assume_init());
            }
        }
        self.charge_atom()?;
        // SAFETY: the text is as long as it says, and not too long.
        Ok(unsafe { enif_make_atom_len(self.env, name, text.len()) })
    }

    #[cold]
    fn wide_atom(&mut self, text: &str) -> Result<ErlNifTerm, Unmakeable> {
        let mut latin1 = [0; 255];
        let narrow = text.chars().enumerate().try_fold(0, |_, (index, character)| {
            *latin1.get_mut(index)? = u8::try_from(u32::from(character)).ok()?;
            Some(index + 1)
        });
        if let Some(length) = narrow {
            return self.narrow_atom(&latin1[..length]);
        }
        self.takes(effort::EXTERNAL)?;
        let mut bytes = Vec::with_capacity(text.len() + 4);
        match u8::try_from(text.len()) {
            Ok(length) => bytes.extend([etf::VERSION, etf::SMALL_ATOM_UTF8, length]),
            Err(_) => {
                bytes.extend([etf::VERSION, etf::ATOM_UTF8]);
                bytes.extend((text.len() as u16).to_be_bytes());
            }
        }
        bytes.extend_from_slice(text.as_bytes());
        if let Some(atom) = from_external(self.env, &bytes, true) {
            return Ok(atom);
        }
        self.charge_atom()?;
        from_external(self.env, &bytes, false).ok_or(Unmakeable::Refused)
    }

    /// The atom of a name that a worker has told.
    pub fn function_name(&mut self, name: &str) -> Result<ErlNifTerm, Unmakeable> {
        if name.chars().count() > 255 {
            return Err(Unmakeable::Refused);
        }
        if name.is_ascii() {
            self.narrow_atom(name.as_bytes())
        } else {
            self.wide_atom(name)
        }
    }
}

impl Builder for VmBuilder<'_> {
    type Term = ErlNifTerm;
    type Refusal = Unmakeable;

    const KEYS: bool = false;

    #[inline]
    fn integer(&mut self, value: i64) -> Result<ErlNifTerm, Unmakeable> {
        // SAFETY: the environment is alive.
        Ok(unsafe { enif_make_int64(self.env, value) })
    }

    fn unsigned(&mut self, value: u64) -> Result<ErlNifTerm, Unmakeable> {
        // SAFETY: the environment is alive.
        Ok(unsafe { enif_make_uint64(self.env, value) })
    }

    #[cold]
    fn big(&mut self, negative: bool, magnitude: &[u8]) -> Result<ErlNifTerm, Unmakeable> {
        let mut bytes = Vec::with_capacity(magnitude.len() + 7);
        match u8::try_from(magnitude.len()) {
            Ok(length) => bytes.extend([etf::VERSION, etf::SMALL_BIG, length]),
            Err(_) => {
                bytes.extend([etf::VERSION, etf::LARGE_BIG]);
                bytes.extend((magnitude.len() as u32).to_be_bytes());
            }
        }
        bytes.push(negative.into());
        bytes.extend_from_slice(magnitude);
        self.external(&bytes)
    }

    fn float(&mut self, value: f64) -> Result<ErlNifTerm, Unmakeable> {
        // SAFETY: the environment is alive; a value that is not finite would raise, the decoder has refused those.
        Ok(unsafe { enif_make_double(self.env, value) })
    }

    #[inline]
    fn atom(&mut self, text: &str) -> Result<ErlNifTerm, Unmakeable> {
        if text.is_ascii() {
            recent_atoms::atom(text.as_bytes(), || self.narrow_atom(text.as_bytes()))
        } else {
            self.wide_atom(text)
        }
    }

    fn nil(&mut self) -> Result<ErlNifTerm, Unmakeable> {
        // SAFETY: no element is read.
        Ok(unsafe { enif_make_list_from_array(self.env, std::ptr::null(), 0) })
    }

    fn list(&mut self, elements: &[ErlNifTerm], tail: Option<ErlNifTerm>) -> Result<ErlNifTerm, Unmakeable> {
        let Some(tail) = tail else {
            // SAFETY: the elements are terms of the environment, as many as the slice has.
            return Ok(unsafe { enif_make_list_from_array(self.env, elements.as_ptr(), elements.len() as u32) });
        };
        // SAFETY: terms of the environment.
        Ok(elements.iter().rfold(tail, |list, element| unsafe {
            enif_make_list_cell(self.env, *element, list)
        }))
    }

    #[inline]
    fn tuple(&mut self, elements: &[ErlNifTerm]) -> Result<ErlNifTerm, Unmakeable> {
        // SAFETY: the elements are terms of the environment, as many as the slice has.
        Ok(unsafe { enif_make_tuple_from_array(self.env, elements.as_ptr(), elements.len() as u32) })
    }

    fn map(&mut self, keys: &[ErlNifTerm], values: &[ErlNifTerm]) -> Result<Option<ErlNifTerm>, Unmakeable> {
        let mut map = MaybeUninit::uninit();
        // SAFETY: the terms are of the environment, both slices as long; the map is filled in when the answer is not 0.
        unsafe {
            let made = enif_make_map_from_arrays(
                self.env,
                keys.as_ptr(),
                values.as_ptr(),
                keys.len().min(values.len()),
                map.as_mut_ptr(),
            );
            Ok((made != 0).then(|| map.assume_init()))
        }
    }

    fn binary<S: Source>(&mut self, payload: Payload<'_, S>) -> Result<ErlNifTerm, Unmakeable> {
        let length = payload.length();
        if length >= LARGE {
            return self.large_binary(payload);
        }
        let mut term = MaybeUninit::uninit();
        // SAFETY: the VM answers memory of that length, ours until the function returns, and fills the term in. An empty
        // slice needs an address that is not null.
        unsafe {
            let data = enif_make_new_binary(self.env, length, term.as_mut_ptr());
            if length > 0 {
                payload.copy_to(std::slice::from_raw_parts_mut(data.cast(), length));
            }
            Ok(term.assume_init())
        }
    }

    #[cold]
    fn bits<S: Source>(&mut self, payload: Payload<'_, S>, last: u8) -> Result<ErlNifTerm, Unmakeable> {
        let length = payload.length() as u32;
        let mut bytes = Vec::with_capacity(payload.length() + 7);
        bytes.extend([etf::VERSION, etf::BIT_BINARY]);
        bytes.extend(length.to_be_bytes());
        bytes.push(last);
        payload.append_to(&mut bytes);
        self.external(&bytes)
    }

    #[cold]
    fn name(&mut self, name: Name, _key: &[u8]) -> Result<ErlNifTerm, Unmakeable> {
        let worker = self.from.ok_or(Unmakeable::Forged)?;
        self.takes(effort::NAME)?;
        if let Some(&term) = self.copies.as_ref().and_then(|copies| copies.get(&name)) {
            return Ok(term);
        }
        let names = worker.names().lock();
        let words = names.words(name);
        self.spare = self.spare.checked_sub(words).ok_or(Unmakeable::Memory)?;
        let term = names.term(self.env, name)?;
        if words > 0 {
            self.copies.get_or_insert_default().insert(name, term);
        }
        Ok(term)
    }

    #[cold]
    fn resource(&mut self, id: u64) -> Result<ErlNifTerm, Unmakeable> {
        let worker = self.from.ok_or(Unmakeable::NoResources)?;
        self.takes(effort::OBJECT_AGAIN)?;
        let counted = self.effort.meets();
        let releases = worker.releases();
        let mut known = releases.known();
        if let Some(external) = known.external(id)
            && let Some(term) = from_external(self.env, external, true)
            && remote(self.env, term) == Some((releases.incarnation(), id))
        {
            if counted {
                releases.give_back(id);
            }
            self.effort.made(term);
            return Ok(term);
        }
        // Done anyway: the next one sees it.
        let _ = self.effort.takes(effort::OBJECT - effort::OBJECT_AGAIN);
        let mark = known.next();
        let remote = Handle::new(Remote::new(releases, id, mark));
        // SAFETY: the environment is alive for as long as the value, which does not leave this function.
        let env = unsafe { Env::new(&(), self.env) };
        let term = remote.term(env).as_c_arg();
        let external = External::of(self.env, term).ok_or(Unmakeable::Memory)?;
        known.put(id, mark, external.whole());
        self.effort.made(term);
        Ok(term)
    }
}

impl VmBuilder<'_> {
    #[cold]
    fn large_binary<S: Source>(&mut self, payload: Payload<'_, S>) -> Result<ErlNifTerm, Unmakeable> {
        let length = payload.length();
        let mut binary = MaybeUninit::uninit();
        // SAFETY: filled in when the answer is not 0; then the memory is ours until it becomes a term.
        unsafe {
            if enif_alloc_binary(length, binary.as_mut_ptr()) == 0 {
                return Err(Unmakeable::Memory);
            }
            let mut binary = binary.assume_init();
            payload.copy_to(std::slice::from_raw_parts_mut(binary.data.cast(), length));
            Ok(enif_make_binary(self.env, &raw mut binary))
        }
    }
}

/// The atom of a text, if there is one.
pub fn existing_atom(env: *mut ErlNifEnv, text: &str) -> Option<ErlNifTerm> {
    let mut bytes = Vec::with_capacity(text.len() + 4);
    bytes.extend([etf::VERSION, etf::ATOM_UTF8]);
    bytes.extend(u16::try_from(text.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
    from_external(env, &bytes, true)
}

/// A term's external format, by which the worker orders and prints it. Empty if it has none.
pub fn key(env: *mut ErlNifEnv, term: ErlNifTerm) -> Arc<[u8]> {
    External::of(env, term).map_or_else(|| Arc::from([]), |external| Arc::from(external.body()))
}
