//! `pool_*`: the workers of a library, and its functions. Libraries in the same processes have a pool each, and share the workers.

use super::effort::{Effort, Met};
use super::failure::{Failure, Result, done};
use super::handle::{Handle, Kind, Object, Ref};
use super::scratch::word_bits;
use super::terms::VmBuilder;
use super::waiting::SlotQueue;
use super::worker::Worker;
use crate::atoms;
use crate::reply::map;
use parking_lot::RwLock;
use rustler::sys::ErlNifTerm;
use rustler::types::atom::Atom;
use rustler::{Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::error::Error;
use snakepit_wire::DecodeError;
use snakepit_wire::control::{self, Function, NUMBERS};
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

const POSITIONS: usize = 256;

#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// By which number the workers know the library.
    library: u32,
    functions: OnceLock<Functions>,
    /// The library was unloaded, and others go on.
    closed: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    workers: RwLock<Vec<Option<Handle<Worker>>>>,
    /// The position that was used last: its worker is the most likely to be awake. A hint (Relaxed).
    last: AtomicUsize,
    queue: Arc<SlotQueue>,
    /// Calls of workers that have left.
    past: AtomicU64,
}

static KIND: Kind = Kind::new();

impl Object for Pool {
    const NAME: &'static CStr = c"snakepit_pool";

    fn kind() -> &'static Kind {
        &KIND
    }
}

/// The library's functions by name and arity, in an open hash table that is never full.
#[derive(Debug)]
pub struct Functions {
    list: Vec<Function>,
    names: Vec<ErlNifTerm>,
    /// Indices into the list, or `NONE`.
    table: Vec<u32>,
    mask: usize,
}

const NONE: u32 = u32::MAX;

// SAFETY: atoms are words, and terms of every environment.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

impl Functions {
    fn new(list: &[Function], mut builder: VmBuilder<'_>) -> Result<Self> {
        let capacity = (list.len() * 2 + 1).next_power_of_two();
        let mut functions = Functions {
            list: list.to_vec(),
            names: Vec::with_capacity(list.len()),
            table: vec![NONE; capacity],
            mask: capacity - 1,
        };
        for (index, function) in list.iter().enumerate() {
            let name = builder.function_name(&function.name).map_err(DecodeError::Refused)?;
            functions.names.push(name);
            let mut place = hash(name, function.arity) & functions.mask;
            while functions.table[place] != NONE {
                place = (place + 1) & functions.mask;
            }
            functions.table[place] = index as u32;
        }
        Ok(functions)
    }

    #[inline]
    fn find(&self, name: ErlNifTerm, arity: u32) -> Option<u32> {
        let mut place = hash(name, arity) & self.mask;
        loop {
            let index = *self.table.get(place)?;
            let function = self.list.get(index as usize)?;
            if function.arity == arity && self.names.get(index as usize) == Some(&name) {
                return Some(index);
            }
            place = (place + 1) & self.mask;
        }
    }
}

/// Atoms are numbers one after the other.
#[inline]
fn hash(name: ErlNifTerm, arity: u32) -> usize {
    let mixed = (word_bits(name) as u64 ^ u64::from(arity)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 40) as usize
}

impl Pool {
    pub fn queue(&self) -> &SlotQueue {
        &self.shared.queue
    }

    pub fn function(&self, name: ErlNifTerm, arity: u32) -> Option<Option<u32>> {
        // Before the first worker nobody knows what there is. Relaxed: a worker refuses a call that comes too late.
        let functions = self.functions.get().filter(|_| !self.closed.load(Ordering::Relaxed))?;
        let place = functions.find(name, arity);
        Some(place.map(|place| control::function_number(self.library, place)))
    }

    /// Whether a call would find a slot, or find that there is no worker.
    pub fn has_room(&self) -> bool {
        let workers = self.shared.workers.read();
        let mut serving = workers.iter().flatten().filter(|worker| worker.serves()).peekable();
        serving.peek().is_none() || serving.any(|worker| worker.has_room())
    }

    /// Lets `usage` have the worker that was used last, if it is idle. Nobody can put or take workers meanwhile.
    #[inline]
    pub fn with_idle<R>(&self, usage: impl FnOnce(&Handle<Worker>) -> R) -> Option<R> {
        let workers = self.shared.workers.read();
        match workers.get(self.shared.last.load(Ordering::Relaxed)) {
            Some(Some(worker)) if worker.serves() && worker.ring().in_flight() == 0 => Some(usage(worker)),
            _ => None,
        }
    }

    /// The worker for the next call: the least busy, of several the one used last.
    pub fn choose(&self) -> Option<Handle<Worker>> {
        let workers = self.shared.workers.read();
        let last = self.shared.last.load(Ordering::Relaxed);
        let busy = |position: usize, worker: &Handle<Worker>| (worker.ring().in_flight(), position != last, position);
        let (_, position, worker) = workers
            .iter()
            .enumerate()
            .filter_map(|(position, worker)| worker.as_ref().map(|worker| (position, worker)))
            .filter(|(_, worker)| worker.serves())
            .map(|(position, worker)| (busy(position, worker), position, worker))
            .min_by_key(|(key, _, _)| *key)?;
        self.shared.last.store(position, Ordering::Relaxed);
        Some(worker.clone())
    }

    /// Any other worker that has a slot, when the least busy one had none.
    pub fn others(&self, than: &Handle<Worker>) -> Vec<Handle<Worker>> {
        let workers = self.shared.workers.read();
        let others = workers.iter().flatten().filter(|worker| worker.serves());
        others
            .filter(|worker| worker.incarnation() != than.incarnation())
            .cloned()
            .collect()
    }

    /// The worker that a resource lives in.
    #[cold]
    pub fn incarnation(&self, incarnation: u64) -> Option<Handle<Worker>> {
        let workers = self.shared.workers.read();
        let mut found = workers.iter().flatten().filter(|worker| worker.serves());
        found.find(|worker| worker.incarnation() == incarnation).cloned()
    }

    /// How many calls one batch may have in flight: others want slots too.
    pub fn window(&self) -> usize {
        let workers = self.shared.workers.read();
        let slots: usize = workers.iter().flatten().map(|worker| slots(worker)).sum();
        (slots * 3 / 4).max(1)
    }

    /// Takes the functions of its library from the first worker that has loaded it; the others must have the same.
    fn learn(&self, env: Env<'_>, worker: &Handle<Worker>) -> Result<()> {
        let functions = worker.functions(self.library).ok_or_else(|| Failure::Mismatch {
            message: "the worker has not loaded a library".to_owned(),
        })?;
        let known = match self.functions.get() {
            Some(known) => known,
            None => {
                // No more than a packet has.
                let mut effort = Effort::unbounded(&Met::default());
                // SAFETY: the environment is the caller's, for the whole of this call.
                let builder = unsafe { VmBuilder::new(env.as_c_arg(), Some(worker), &mut effort) };
                let made = Functions::new(&functions, builder)?;
                self.functions.get_or_init(|| made)
            }
        };
        if *known.list != *functions {
            return Err(Failure::Mismatch {
                message: "other functions than the first worker of the pool".to_owned(),
            });
        }
        Ok(())
    }

    fn put(&self, env: Env<'_>, position: usize, worker: &Handle<Worker>) -> Result<()> {
        self.learn(env, worker)?;
        worker.join(&self.shared.queue);
        let mut workers = self.shared.workers.write();
        let place = workers
            .get_mut(position)
            .ok_or_else(|| Error::invalid_spec("position", "past the end of the pool"))?;
        let old = place.replace(worker.clone());
        drop(workers);
        drop(old);
        self.shared.queue.wake_all(env.as_c_arg());
        Ok(())
    }
}

fn slots(worker: &Worker) -> usize {
    worker.ring().plan().slots as usize
}

#[rustler::nif]
fn pool_new(env: Env<'_>, size: usize) -> NifResult<Term<'_>> {
    if !(1..=POSITIONS).contains(&size) {
        return Err(NifError::BadArg);
    }
    let shared = Shared {
        workers: RwLock::new((0..size).map(|_| None).collect()),
        last: AtomicUsize::new(0),
        queue: Arc::new(SlotQueue::default()),
        past: AtomicU64::new(0),
    };
    let pool = Pool {
        shared: Arc::new(shared),
        library: 0,
        functions: OnceLock::new(),
        closed: AtomicBool::new(false),
    };
    Ok((atoms::ok(), Handle::new(pool).term(env)).encode(env))
}

#[rustler::nif]
fn pool_beside<'a>(env: Env<'a>, pool: Term<'a>, library: u32) -> NifResult<Term<'a>> {
    let pool = Ref::<Pool>::of(pool)?;
    if library >= NUMBERS {
        return Err(NifError::BadArg);
    }
    let beside = Pool {
        shared: Arc::clone(&pool.shared),
        library,
        functions: OnceLock::new(),
        closed: AtomicBool::new(false),
    };
    Ok((atoms::ok(), Handle::new(beside).term(env)).encode(env))
}

#[rustler::nif]
fn pool_learn<'a>(env: Env<'a>, pool: Term<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let pool = Ref::<Pool>::of(pool)?;
    let worker = Ref::<Worker>::of(worker)?.keep();
    Ok(done(env, pool.learn(env, &worker)))
}

#[rustler::nif]
fn pool_close<'a>(env: Env<'a>, pool: Term<'a>) -> NifResult<Atom> {
    let pool = Ref::<Pool>::of(pool)?;
    pool.closed.store(true, Ordering::Relaxed);
    // Who waits for a slot now finds that its library is gone.
    pool.shared.queue.wake_all(env.as_c_arg());
    Ok(atoms::ok())
}

#[rustler::nif]
fn pool_put<'a>(env: Env<'a>, pool: Term<'a>, position: usize, worker: Term<'a>) -> NifResult<Term<'a>> {
    let pool = Ref::<Pool>::of(pool)?;
    let worker = Ref::<Worker>::of(worker)?.keep();
    Ok(done(env, pool.put(env, position, &worker)))
}

#[rustler::nif]
fn pool_take<'a>(env: Env<'a>, pool: Term<'a>, position: usize) -> NifResult<Atom> {
    let pool = Ref::<Pool>::of(pool)?;
    let mut workers = pool.shared.workers.write();
    let old = workers.get_mut(position).and_then(Option::take);
    drop(workers);
    if let Some(old) = old {
        pool.shared.past.fetch_add(old.published(), Ordering::Relaxed);
        // Who waits for a slot of the last worker now finds none.
        pool.shared.queue.wake_all(env.as_c_arg());
    }
    Ok(atoms::ok())
}

#[rustler::nif]
fn pool_info<'a>(env: Env<'a>, pool: Term<'a>) -> NifResult<Term<'a>> {
    use crate::atoms as a;
    let pool = Ref::<Pool>::of(pool)?;
    let workers = pool.shared.workers.read();
    let in_flight: Vec<(usize, usize)> = workers
        .iter()
        .enumerate()
        .filter_map(|(position, worker)| Some((position, worker.as_ref()?.ring().in_flight())))
        .collect();
    let now: u64 = workers.iter().flatten().map(|worker| worker.published()).sum();
    let size = workers.len();
    drop(workers);
    let positions: Vec<usize> = in_flight.iter().map(|(position, _)| *position).collect();
    let functions: Vec<_> = pool.functions.get().map_or_else(Vec::new, |functions| {
        let names = functions.names.iter();
        // SAFETY: atoms are terms of every environment.
        let names = names.map(|name| unsafe { Term::new(env, *name) });
        let list = functions.list.iter();
        names
            .zip(list)
            .map(|(name, function)| (name, function.arity, function.flags))
            .collect()
    });
    let pairs = [
        (a::size(), size.encode(env)),
        (a::workers(), positions.encode(env)),
        (a::in_flight(), in_flight.encode(env)),
        (a::waiting(), pool.shared.queue.length().encode(env)),
        (a::calls(), (now + pool.shared.past.load(Ordering::Relaxed)).encode(env)),
        (a::functions(), functions.encode(env)),
    ];
    Ok(map(env, &pairs))
}
