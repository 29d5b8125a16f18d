//! The VM's part in what a library asks: takes the requests out of the ring's event queue, answers them, and keeps what was
//! said.

use super::{PATIENCE, Reply as Answer, Worker};
use snakepit_shm_core::ring::bell::Wait;
use snakepit_shm_core::ring::status;
use snakepit_shm_core::ring::vm::{Call, Poll};
use snakepit_wire::control::{self, ToWorker};
use snakepit_wire::reference::{Heap, Value};
use snakepit_wire::service::{self, KIND, Keyed, MESSAGE, Named, Reply, Request};
use snakepit_wire::{Decoder, Encoder, Limits, Name, NameKind, SliceSource, VecSink};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// What a library has said and been told.
#[derive(Debug, Default)]
pub struct Vm {
    /// Requests without those that brought terms, in their order.
    pub requests: Vec<Request>,
    /// Messages: to whom, what, and whether the library waited to hear of it.
    pub messages: Vec<(Name, Value, bool)>,
    pub commands: Vec<(Name, Value)>,
    /// Processes and ports that do not live.
    pub dead: HashSet<u32>,
    /// Registered names.
    pub registered: HashMap<String, Name>,
    /// Atoms that the worker may not have met.
    pub atoms: HashSet<String>,
    /// References that were made and not dropped, and how many there may be; 0: any number.
    pub made: Vec<Named>,
    pub places: usize,
    parts: HashMap<u32, Vec<u8>>,
    references: u32,
    integers: u8,
    /// Taken records, and those that were in the queue when an answer was taken which said so.
    pub records: usize,
    pub queued: usize,
    /// What the VM's node is called, once it has a name.
    pub node: Option<String>,
    /// No request is answered.
    pub silent: bool,
}

pub fn decoded(bytes: &[u8]) -> Value {
    let mut heap = Heap::new();
    let term = Decoder::new()
        .decode(&mut SliceSource::new(bytes), &Limits::DEFAULT, &mut heap)
        .unwrap();
    heap.value(term)
}

pub fn encoded(value: &Value) -> Vec<u8> {
    let mut heap = Heap::new();
    let term = heap.add(value.clone());
    let mut bytes = Vec::new();
    Encoder::new()
        .encode(
            &mut heap,
            term,
            &Limits::DEFAULT,
            &mut VecSink::new(&mut bytes, usize::MAX),
        )
        .unwrap();
    bytes
}

/// A name as a term without a key, as it comes from a library.
pub fn bare(kind: NameKind, index: u32) -> Value {
    Value::Name {
        name: name(kind, index),
        key: Vec::new(),
    }
}

pub fn name(kind: NameKind, index: u32) -> Name {
    Name {
        kind,
        index,
        generation: 1,
    }
}

/// A local pid's external format.
pub fn pid_key(number: u32) -> Vec<u8> {
    node_key("nonode@nohost", number)
}

fn node_key(node: &str, number: u32) -> Vec<u8> {
    let mut key = vec![88, 119, node.len() as u8];
    key.extend_from_slice(node.as_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(&[0; 8]);
    key
}

/// A reference's external format.
pub fn reference_key(number: u32) -> Vec<u8> {
    let mut key = vec![90, 0, 3, 119, 13];
    key.extend_from_slice(b"nonode@nohost");
    key.extend_from_slice(&[0; 4]);
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(&[0; 8]);
    key
}

/// A reference as it comes with a call.
pub fn reference(index: u32) -> Value {
    Value::Name {
        name: name(NameKind::Reference, index),
        key: reference_key(index),
    }
}

pub fn pid(index: u32) -> Value {
    Value::Name {
        name: name(NameKind::Pid, index),
        key: pid_key(index),
    }
}

impl Vm {
    fn term(&mut self, stream: u32, last: &[u8]) -> Value {
        let mut bytes = self.parts.remove(&stream).unwrap_or_default();
        bytes.extend_from_slice(last);
        decoded(&bytes)
    }

    /// Of the node that the VM is now; what came from `other@there` came from there.
    fn key(&self, index: u32) -> Vec<u8> {
        let far = index == 50 && self.node.is_none();
        let node = if far { Some("other@there") } else { self.node.as_deref() };
        node_key(node.unwrap_or("nonode@nohost"), index + 40)
    }

    fn lives(&self, name: Named) -> Reply {
        if self.dead.contains(&name.0.index) {
            Reply::No
        } else {
            Reply::Yes
        }
    }

    /// Takes a record; the answer, if one is asked for.
    pub fn take(&mut self, kind: u32, record: &[u8]) -> Option<(u32, Reply)> {
        self.records += 1;
        if kind == MESSAGE {
            let (to, term) = service::message(record).unwrap();
            self.messages.push((to, decoded(term), false));
            return None;
        }
        assert_eq!(kind, KIND);
        let request: Request = control::decode(record).unwrap();
        let (number, reply) = match &request {
            Request::Part { stream, bytes } => {
                assert!(bytes.len() <= service::PIECE);
                self.parts.entry(*stream).or_default().extend_from_slice(bytes);
                return None;
            }
            Request::Send {
                request,
                to,
                stream,
                term,
            } => {
                let term = self.term(*stream, term);
                self.messages.push((to.0, term, *request != 0));
                (*request, self.lives(*to))
            }
            Request::Command {
                request,
                to,
                stream,
                term,
            } => {
                let term = self.term(*stream, term);
                self.commands.push((to.0, term));
                (*request, self.lives(*to))
            }
            Request::WhereIs { request, port, name } => {
                let found = self
                    .registered
                    .get(name)
                    .filter(|name| (name.kind == NameKind::Port) == *port);
                let keyed = |name: &Name| Keyed {
                    name: Named(*name),
                    key: pid_key(name.index),
                };
                (
                    *request,
                    found.map_or(Reply::No, |name| Reply::Names(vec![keyed(name)])),
                )
            }
            Request::Exists { request, name } => {
                let exists = self.atoms.contains(name);
                (*request, if exists { Reply::Yes } else { Reply::No })
            }
            Request::IsAlive { request, name } => (*request, self.lives(*name)),
            Request::References { request, count }
                if self.places > 0 && self.made.len() + *count as usize > self.places =>
            {
                (*request, Reply::Refused)
            }
            Request::References { request, count } => {
                let from = self.references;
                self.references += count;
                let keyed = |number: u32| Keyed {
                    name: Named(name(NameKind::Reference, 1_000 + number)),
                    key: reference_key(1_000 + number),
                };
                let names: Vec<Keyed> = (from..self.references).map(keyed).collect();
                self.made.extend(names.iter().map(|keyed| keyed.name));
                (*request, Reply::Names(names))
            }
            Request::Now { request } => {
                self.integers += 1;
                (*request, Reply::Integer(vec![97, self.integers]))
            }
            Request::Unique { request, properties } => {
                self.integers += 1;
                (
                    *request,
                    Reply::Integer(vec![97, *properties as u8 * 10 + self.integers]),
                )
            }
            Request::Monitor { request, pid, .. } => (*request, self.lives(*pid)),
            Request::Key { request, name } => (*request, Reply::Key(self.key(name.0.index))),
            Request::Drop { names, .. } => {
                self.made.retain(|made| !names.contains(made));
                (0, Reply::No)
            }
            Request::Keep { .. } | Request::Demonitor { .. } => (0, Reply::No),
        };
        if !matches!(request, Request::Send { .. } | Request::Command { .. }) {
            self.requests.push(request);
        }
        (number != 0 && !self.silent).then_some((number, reply))
    }

    /// The monitors that were asked for, in their order.
    pub fn monitors(&self) -> Vec<u64> {
        let monitor = |request: &Request| match request {
            Request::Monitor { monitor, .. } => Some(*monitor),
            _ => None,
        };
        self.requests.iter().filter_map(monitor).collect()
    }
}

impl Worker {
    /// Does what is in the event queue.
    pub fn attend(&self) -> usize {
        let mut vm = self.vm.lock().unwrap();
        let control = self.control.as_ref().unwrap();
        self.ring
            .events(64, |kind, record| {
                if let Some((request, reply)) = vm.take(kind, record) {
                    control.say(&ToWorker::Answer { request, reply });
                }
            })
            .unwrap()
    }

    /// Waits for what the library says outside of calls.
    pub fn attend_until(&self, enough: impl Fn(&Vm) -> bool) {
        let until = Instant::now() + PATIENCE;
        while {
            while self.attend() > 0 {}
            !enough(&self.vm.lock().unwrap())
        } {
            assert!(Instant::now() < until, "{:?}", self.vm.lock().unwrap());
            let deadline = Some(Instant::now() + Duration::from_secs(1));
            assert!(
                !matches!(self.done.wait(deadline).unwrap(), Wait::Closed),
                "the worker is gone"
            );
        }
    }

    /// The answer of a call that may ask.
    pub fn answer_asked(&self, call: Call) -> Answer {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.ring.spin(&call, Duration::from_micros(50)).unwrap() {
                Poll::Answered(answer) => {
                    let mut payload = Vec::new();
                    self.ring.source(&call, &answer).read(&mut payload);
                    self.ring.release(call);
                    if answer.status & status::QUEUED != 0 {
                        while self.attend() > 0 {
                            self.vm.lock().unwrap().queued += 1;
                        }
                    }
                    return Answer::Answer(answer.status & !status::QUEUED, payload);
                }
                _ => {
                    assert!(Instant::now() < until, "no answer: {:?}", self.vm.lock().unwrap());
                    if self.attend() == 0 {
                        std::thread::yield_now();
                    }
                }
            }
        }
    }

    /// A call with terms; the value that it gives.
    pub fn ask(&self, function: &str, arguments: &[Value]) -> Value {
        let arguments: Vec<_> = arguments.iter().map(encoded).collect();
        match self.answer_asked(self.start(function, &arguments)) {
            Answer::Answer(status::VALUE, bytes) => decoded(&bytes),
            other => panic!("{function}: {other:?}"),
        }
    }

    /// What the library has said since this was asked last.
    pub fn said(&self) -> Vm {
        let mut vm = self.vm.lock().unwrap();
        let next = Vm {
            dead: vm.dead.clone(),
            registered: vm.registered.clone(),
            atoms: vm.atoms.clone(),
            made: vm.made.clone(),
            places: vm.places,
            references: vm.references,
            integers: vm.integers,
            ..Vm::default()
        };
        std::mem::replace(&mut vm, next)
    }
}
