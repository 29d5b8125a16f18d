//! What the VM has to say to a worker: answers to its library's requests, ends of processes that it watches, what it is to load and unload.
//!
//! What the socket does not take waits here, in order, and goes out when the socket says that it has room: then the process that
//! hears the worker's bell is told.

use super::failure::{Result, unsent};
use super::handle::Ref;
use super::packets::{self, Sent};
use super::worker::Worker;
use crate::atoms;
use parking_lot::Mutex;
use rustler::sys::{ErlNifEnv, ErlNifPid};
use rustler::{Encoder, Env};
use snakepit_shm_core::error::Error;
use snakepit_wire::control::{self, ToWorker};
use snakepit_wire::service::Reply;
use std::collections::VecDeque;

/// Bytes that may wait. A thread of a library waits for its answer before it asks again, and whoever asks reads.
const WAITING: usize = 4 << 20;
/// Packets that are sent at once.
const PORTION: usize = 256;
/// What a packet costs beside its bytes.
const EACH: usize = 64;

#[derive(Debug, Default)]
pub struct Replies(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Who is told that there is room.
    listener: Option<ErlNifPid>,
    /// It is going to be told.
    armed: bool,
}

// SAFETY: a pid is a word; the rest is bytes.
unsafe impl Send for Waiting {}

impl Replies {
    /// The answer to a request, unless it wants none.
    pub fn answer(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, request: u32, reply: Reply) {
        if request == 0 {
            return;
        }
        let packet = control::encode(&ToWorker::Answer { request, reply }).or_else(|_| {
            // Names with very long keys, which the worker may ask for one by one.
            let reply = Reply::Refused;
            control::encode(&ToWorker::Answer { request, reply })
        });
        if let Ok(packet) = packet {
            // Who is gone needs no answer.
            let _ = self.post(worker, env, packet);
        }
    }

    /// The end of a process that is watched.
    pub fn down(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, monitor: u64) {
        if let Ok(packet) = control::encode(&ToWorker::Down { monitor }) {
            let _ = self.post(worker, env, packet);
        }
    }

    /// What its owner has to say: nothing of it is lost, and all of it comes in the order in which it was said.
    pub fn tell(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, message: &ToWorker) -> Result<()> {
        Ok(self.post(worker, env, control::encode(message).map_err(unsent)?)?)
    }

    fn post(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, packet: Vec<u8>) -> std::result::Result<(), Error> {
        let mut waiting = self.0.lock();
        let posted = waiting.post(worker, packet);
        waiting.arm(worker, env);
        posted
    }

    /// Sends some of what waits. The calling process is the one to be told from now on, also when there is more to send.
    pub fn flush(&self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv, listener: Option<ErlNifPid>) {
        let mut waiting = self.0.lock();
        waiting.listener = listener;
        waiting.armed = false;
        for _ in 0..PORTION {
            let Some(packet) = waiting.packets.front() else { break };
            match packets::post(worker.control(), packet, &[]) {
                Sent::Busy => break,
                Sent::Yes => {
                    waiting.bytes -= packet.len() + EACH;
                    waiting.packets.pop_front();
                }
                Sent::Closed => waiting.clear(),
            }
        }
        waiting.arm(worker, env);
    }

    /// The process that is told.
    pub fn listener(&self) -> Option<ErlNifPid> {
        self.0.lock().listener
    }

    /// Whether more waits than a worker can have asked for that reads.
    pub fn overflow(&self) -> bool {
        self.0.lock().bytes > WAITING
    }

    pub fn close(&self) {
        self.0.lock().clear();
    }
}

impl Waiting {
    /// Sends it, if nothing waits before it; else it waits.
    fn post(&mut self, worker: Ref<'_, Worker>, packet: Vec<u8>) -> std::result::Result<(), Error> {
        if self.packets.is_empty() {
            match packets::post(worker.control(), &packet, &[]) {
                Sent::Yes => return Ok(()),
                Sent::Closed => return Err(Error::Closed),
                Sent::Busy => {}
            }
        }
        self.bytes += packet.len() + EACH;
        self.packets.push_back(packet);
        Ok(())
    }

    /// Has the listener told that the socket has room, when something waits.
    fn arm(&mut self, worker: Ref<'_, Worker>, env: *mut ErlNifEnv) {
        if self.packets.is_empty() {
            return;
        }
        let Some(listener) = self.listener.filter(|_| !self.armed) else {
            return;
        };
        // SAFETY: the environment is alive for as long as the value, which does not leave this function.
        let safe = unsafe { Env::new(&(), env) };
        let message = (
            atoms::select(),
            worker.keep().term(safe),
            atoms::control(),
            atoms::ready_output(),
        );
        let message = message.encode(safe).as_c_arg();
        // What is closed needs no more answers.
        self.armed = worker.control().select_output(env, worker, &listener, message).is_ok();
    }

    fn clear(&mut self) {
        self.packets.clear();
        self.bytes = 0;
    }
}
