//! Monitors of processes, which belong to objects of the library.
//!
//! The VM knows a monitor by its number. It is active from the request on until one of: its process has ended (then the down
//! callback of the object's type runs), the library ends it, its object is destroyed. Whoever takes it out of the table has
//! ended it; what the VM tells of it afterwards is for nobody.

use super::env::Env;
use super::held;
use super::resource::{self, Object};
use super::service;
use super::term::Term;
use snakepit_wire::Name;
use snakepit_wire::service::{Keyed, Named, Reply, Request};
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `ErlNifMonitor`: the number, and words that are 0.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Monitor {
    /// Big-endian, so that later ones compare as greater.
    number: [u8; 8],
    rest: [u8; 24],
}

struct Entry {
    /// Alive as long as the entry is there: an object ends its monitors before it goes.
    object: *mut Object,
    process: Term,
    /// What `enif_make_monitor_term` has made of it: always the same.
    reference: Option<Keyed>,
}

// SAFETY: the object is counted atomically, and looked at only while the table is locked or a reference is held.
unsafe impl Send for Entry {}

#[derive(Default)]
struct Table {
    last: u64,
    active: HashMap<u64, Entry>,
    /// Numbers by the address of the object.
    of_objects: HashMap<usize, Vec<u64>>,
}

impl Table {
    fn add(&mut self, entry: Entry) -> u64 {
        self.last += 1;
        self.of_objects
            .entry(entry.object as usize)
            .or_default()
            .push(self.last);
        self.active.insert(self.last, entry);
        self.last
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.active.remove(&number)?;
        if let Some(numbers) = self.of_objects.get_mut(&(entry.object as usize)) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.of_objects.remove(&(entry.object as usize));
            }
        }
        Some(entry)
    }
}

static TABLE: Mutex<Option<Table>> = Mutex::new(None);

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// The reference, made when it is asked for first.
    fn term(&mut self, env: &mut Env) -> Option<Term> {
        if self.reference.is_none() {
            self.reference = held::make();
        }
        let keyed = self.reference.as_ref()?;
        Some(env.handle(keyed.name.0, &keyed.key))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(keyed) = self.reference.take() {
            held::let_go(&[keyed.name.0]);
        }
    }
}

impl Monitor {
    const fn new(number: u64) -> Self {
        Self {
            number: number.to_be_bytes(),
            rest: [0; 24],
        }
    }

    const fn number(self) -> u64 {
        u64::from_be_bytes(self.number)
    }

    pub fn compare(&self, other: &Self) -> std::cmp::Ordering {
        self.number.cmp(&other.number)
    }
}

/// Takes a monitor out of the table, if it is there: the caller has ended it. With `of`, only one of this object.
fn take(number: u64, of: Option<*mut Object>) -> Option<Entry> {
    let mut table = table();
    let table = table.as_mut()?;
    let matches = of.is_none_or(|object| table.active.get(&number).is_some_and(|entry| entry.object == object));
    if matches { table.remove(number) } else { None }
}

/// A monitor of a process for an object; `None` when the process does not live.
///
/// # Safety
/// The caller holds the object, and its type has a down callback.
pub unsafe fn start(object: *mut Object, process: Term) -> Option<Monitor> {
    let pid: Name = process.as_local()?;
    let number = table().get_or_insert_default().add(Entry {
        object,
        process,
        reference: None,
    });
    // SAFETY: the caller holds it.
    let id = unsafe { resource::number(object) };
    // The process may end before the answer is here, and its callback run before this function returns, as in the VM.
    let reply = service::ask(|request| Request::Monitor {
        request,
        monitor: number,
        object: id,
        pid: Named(pid),
    });
    if reply == Some(Reply::Yes) {
        return Some(Monitor::new(number));
    }
    drop(take(number, None));
    None
}

/// Ends a monitor of an object; false when it has none such any more.
pub fn end(object: *mut Object, monitor: &Monitor) -> bool {
    let number = monitor.number();
    let ended = take(number, Some(object)).is_some();
    if ended {
        service::tell(&Request::Demonitor { monitor: number });
    }
    ended
}

/// Ends all monitors of an object that is about to go.
pub fn end_all(object: *mut Object) {
    let ended: Vec<(u64, Entry)> = {
        let mut table = table();
        let Some(table) = table.as_mut() else { return };
        let numbers = table.of_objects.remove(&(object as usize)).unwrap_or_default();
        numbers
            .into_iter()
            .filter_map(|number| Some((number, table.active.remove(&number)?)))
            .collect()
    };
    for (monitor, entry) in ended {
        drop(entry);
        service::tell(&Request::Demonitor { monitor });
    }
}

/// The process of a monitor has ended: runs the down callback in this thread.
pub fn down(number: u64) {
    let entry = {
        let mut table = table();
        let Some(table) = table.as_mut() else { return };
        let Some(entry) = table.active.get(&number) else { return };
        // SAFETY: alive while its entry is there and the table is locked. One that is about to go ends its monitors itself.
        if !unsafe { resource::keep_unless_gone(entry.object) } {
            return;
        }
        table.remove(number)
    };
    let Some(entry) = entry else { return };
    let (object, mut process) = (entry.object, entry.process);
    // SAFETY: a reference is held. Only objects of a type with this callback have monitors, unless the type was taken over since.
    unsafe {
        let mut monitor = Monitor::new(number);
        (*resource::kind(object)).run(
            |callbacks| callbacks.down,
            |callback, owner| {
                let mut env = Env::callback(Some(owner));
                FIRING.set(Some((number, entry)));
                callback(
                    &raw mut *env,
                    resource::data(object),
                    (&raw mut process).cast(),
                    (&raw mut monitor).cast::<c_void>(),
                );
                drop(FIRING.take());
            },
        );
        resource::release(object);
    }
}

thread_local! {
    /// The monitor whose callback runs in this thread: it is in the table no more.
    static FIRING: Cell<Option<(u64, Entry)>> = const { Cell::new(None) };
}

/// The reference of a monitor, the same each time as long as it is active and while its callback runs. `None` when the VM
/// makes none.
pub fn reference(env: &mut Env, monitor: &Monitor) -> Option<Term> {
    let number = monitor.number();
    if let Some((firing, mut entry)) = FIRING.take() {
        let term = (firing == number).then(|| entry.term(env));
        FIRING.set(Some((firing, entry)));
        if let Some(term) = term {
            return term;
        }
    }
    // Made outside of the table's lock: the VM may be asked.
    let known = |table: &Option<Table>| Some(table.as_ref()?.active.get(&number)?.reference.is_some());
    let made = match known(&table()) {
        Some(true) => None,
        Some(false) | None => Some(held::make()?),
    };
    let mut table = table();
    let entry = table.as_mut().and_then(|table| table.active.get_mut(&number));
    let keyed = match (entry.map(|entry| &mut entry.reference), made) {
        (Some(Some(keyed)), spare) => {
            let keyed = keyed.clone();
            drop(table);
            // Another thread was faster.
            held::let_go(&spare.map_or_else(Vec::new, |spare| vec![spare.name.0]));
            keyed
        }
        (Some(place @ None), Some(made)) => place.insert(made).clone(),
        // Of a monitor that has ended: nobody will see another one of it.
        (None, Some(made)) => return Some(env.made_reference(made.name.0, &made.key)),
        // It has ended just now.
        (_, None) => {
            drop(table);
            let made = held::make()?;
            return Some(env.made_reference(made.name.0, &made.key));
        }
    };
    Some(env.handle(keyed.name.0, &keyed.key))
}
