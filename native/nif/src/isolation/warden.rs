//! `warden_*`: the process that starts workers.

use super::channel::Channel;
use super::failure::{Failure, Result, done, unsent};
use super::handle::{Handle, Kind, Object, Ref, Watch};
use super::packets::{self, Received, Sent};
use super::saved::self_pid;
use super::spawn;
use super::worker::Worker;
use crate::atoms;
use crate::reply::{self, map};
use rustler::sys::{ErlNifEnv, ErlNifEvent, ErlNifPid};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::backend::carrier;
use snakepit_shm_core::error::Error;
use snakepit_wire::control::{self, FromWarden, Status, ToWarden};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// The process lives for as long as our end of its socket is open.
#[derive(Debug)]
pub struct Warden(Channel<OwnedFd>);

static KIND: Kind = Kind::new();

impl Object for Warden {
    const NAME: &'static CStr = c"snakepit_warden";

    fn kind() -> &'static Kind {
        &KIND
    }

    fn stop(&self, event: ErlNifEvent) {
        self.0.stopped(event);
    }

    fn down(handle: Handle<Self>, env: *mut ErlNifEnv, _pid: ErlNifPid, _watch: Watch) {
        handle.0.close(env, handle.borrow());
    }
}

impl Warden {
    fn spawn(executable: &[u8]) -> Result<Self> {
        let (ours, theirs) = packets::pair()?;
        spawn::role(&spawn::c_path(executable)?, c"warden", theirs.as_fd())?;
        Ok(Warden(Channel::new(ours)))
    }

    fn send(&self, message: &ToWarden, descriptors: &[RawFd]) -> Result<()> {
        let packet = control::encode(message).map_err(unsent)?;
        match packets::post(&self.0, &packet, descriptors) {
            Sent::Yes => Ok(()),
            Sent::Busy => Err(Failure::Busy),
            Sent::Closed => Err(Error::Closed.into()),
        }
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn warden_spawn<'a>(env: Env<'a>, executable: Binary<'a>) -> NifResult<Term<'a>> {
    // As for every path here: no zero byte in it.
    reply::path(executable)?;
    Ok(match Warden::spawn(executable.as_slice()) {
        Ok(warden) => {
            let warden = Handle::new(warden);
            if let Some(owner) = self_pid(env) {
                warden.borrow().watch(env.as_c_arg(), &owner);
            }
            (atoms::ok(), warden.term(env)).encode(env)
        }
        Err(failure) => failure.term(env),
    })
}

#[rustler::nif]
fn warden_select<'a>(env: Env<'a>, term: Term<'a>) -> NifResult<Term<'a>> {
    let warden = Ref::<Warden>::of(term)?;
    let message = (atoms::select(), term, atoms::undefined(), atoms::ready_input()).encode(env);
    Ok(done(env, warden.0.select(env, warden, message).map_err(Failure::from)))
}

#[rustler::nif]
fn warden_receive<'a>(env: Env<'a>, warden: Term<'a>) -> NifResult<Term<'a>> {
    let warden = Ref::<Warden>::of(warden)?;
    let packet = match packets::receive(&warden.0) {
        Received::Packet(packet) => packet,
        Received::Again => return Ok(atoms::again().encode(env)),
        Received::Closed => return Ok(atoms::closed().encode(env)),
    };
    Ok(match control::decode::<FromWarden>(&packet) {
        Ok(message) => (atoms::ok(), message_term(env, &message)).encode(env),
        // Another version of the executable, or not ours at all: nothing that it says can be relied on.
        Err(_) => {
            warden.0.close(env.as_c_arg(), warden);
            atoms::closed().encode(env)
        }
    })
}

fn message_term<'a>(env: Env<'a>, message: &FromWarden) -> Term<'a> {
    use crate::atoms as a;
    match message {
        FromWarden::Hello { pid, .. } => (a::hello(), pid).encode(env),
        FromWarden::Started { token, pid } => (a::started(), token, pid).encode(env),
        FromWarden::NotStarted { token, call, errno } => {
            let details = map(env, &[(a::call(), call.encode(env)), (a::errno(), errno.encode(env))]);
            (a::not_started(), token, details).encode(env)
        }
        FromWarden::Exited { token, pid, status } => {
            let status = match status {
                Status::Exit(code) => (a::exit(), code),
                Status::Signal(number) => (a::signal(), number),
            };
            (a::exited(), token, pid, status).encode(env)
        }
    }
}

#[rustler::nif]
fn warden_start<'a>(
    env: Env<'a>,
    warden: Term<'a>,
    token: u64,
    worker: Term<'a>,
    label: &str,
    environment: Binary<'a>,
) -> NifResult<Term<'a>> {
    let warden = Ref::<Warden>::of(warden)?;
    let worker = Ref::<Worker>::of(worker)?;
    let message = ToWarden::Start {
        token,
        label: label.to_owned(),
        memory: worker.memory(),
    };
    Worker::reaped_by_caller(worker, env);
    let sent = worker.hand_over(|ends| {
        let environment = (!environment.is_empty())
            .then(|| carrier("snakepit_environment", environment.as_slice()))
            .transpose()?;
        let mut descriptors = ends.to_vec();
        descriptors.extend(environment.as_ref().map(AsRawFd::as_raw_fd));
        warden.send(&message, &descriptors)
    });
    Ok(done(env, sent.and_then(|sent| sent)))
}

#[rustler::nif]
fn warden_kill<'a>(env: Env<'a>, warden: Term<'a>, token: u64, signal: i32) -> NifResult<Term<'a>> {
    let warden = Ref::<Warden>::of(warden)?;
    if !(1..=64).contains(&signal) {
        return Err(NifError::BadArg);
    }
    Ok(done(env, warden.send(&ToWarden::Kill { token, signal }, &[])))
}

#[rustler::nif]
fn warden_close<'a>(env: Env<'a>, warden: Term<'a>) -> NifResult<Atom> {
    let warden = Ref::<Warden>::of(warden)?;
    warden.0.close(env.as_c_arg(), warden);
    Ok(atoms::ok())
}
