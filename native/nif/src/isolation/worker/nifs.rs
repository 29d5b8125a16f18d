//! `worker_*`: what `Snakepit.Native` calls.

use super::Worker;
use super::messages::message_term;
use super::system::{system, tell_time};
use crate::atoms;
use crate::isolation::call::{go_on, scheduled};
use crate::isolation::failure::{Failure, done};
use crate::isolation::handle::{Handle, Ref};
use crate::isolation::packets::{self, Received};
use crate::isolation::saved::self_pid;
use crate::isolation::scratch;
use crate::isolation::worker_spec::Spec;
use crate::reply::{self, map};
use nix::errno::Errno;
use rustler::sys::{ErlNifEnv, ErlNifTerm, c_int};
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error as NifError, NifResult, Term};
use snakepit_shm_core::ring::{ExecutorStatus, WorkerStatus};
use snakepit_wire::control::{self, FromWorker, LIBRARIES, Load, Process, RELEASES, ToWorker};
use std::sync::atomic::Ordering;

/// Output taken at once.
const OUTPUT: usize = 64 << 10;

#[rustler::nif]
fn worker_clock<'a>(worker: Term<'a>) -> NifResult<Atom> {
    tell_time(Ref::<Worker>::of(worker)?.ring());
    Ok(atoms::ok())
}

#[rustler::nif]
fn worker_new<'a>(env: Env<'a>, spec: Term<'a>) -> NifResult<Term<'a>> {
    let grants = Spec::grants(spec)?;
    let spec = Spec::read(spec)?;
    Ok(match Worker::new(&spec, grants) {
        Ok(worker) => {
            let worker = Handle::new(worker);
            let pid = self_pid(env);
            let owner = pid.and_then(|pid| worker.borrow().watch(env.as_c_arg(), &pid));
            if let Some(owner) = owner {
                let _ = worker.owner.set(owner);
            }
            worker.releases.listen(pid);
            (atoms::ok(), worker.term(env)).encode(env)
        }
        Err(failure) => failure.term(env),
    })
}

#[rustler::nif]
fn worker_select<'a>(env: Env<'a>, term: Term<'a>, channel: Atom) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(term)?;
    let message = (atoms::select(), term, channel, atoms::ready_input()).encode(env);
    let selected = if channel == atoms::control() {
        worker.control.select(env, worker, message)
    } else if channel == atoms::output() {
        worker.output.select(env, worker, message)
    } else if channel != atoms::bell() {
        return Err(NifError::BadArg);
    } else if worker.bell_closed.load(Ordering::Relaxed) {
        Ok(())
    } else {
        worker.bell.select(env, worker, message)
    };
    Ok(done(env, selected.map_err(Failure::from)))
}

#[rustler::nif]
fn worker_receive<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let packet = match packets::receive(&worker.control) {
        Received::Packet(packet) => packet,
        Received::Again => return Ok(atoms::again().encode(env)),
        Received::Closed => return Ok(atoms::closed().encode(env)),
    };
    Ok(match control::decode::<FromWorker>(&packet) {
        Ok(message) => {
            let term = message_term(env, &message);
            match message {
                // A second one changes nothing here. Whether it was asked for, the Worker looks before it has the table used.
                FromWorker::Loaded(loaded) => {
                    let mut functions = worker.functions.lock();
                    if functions.len() < LIBRARIES {
                        functions.entry(loaded.library).or_insert(loaded.functions.into());
                    }
                }
                FromWorker::Unloaded { library } => {
                    worker.functions.lock().remove(&library);
                    worker.forget_load_info(library);
                }
                FromWorker::NotLoaded { library, .. } => worker.forget_load_info(library),
                _ => {}
            }
            (atoms::ok(), term).encode(env)
        }
        Err(error) => {
            worker.fault();
            Failure::protocol(error).term(env)
        }
    })
}

#[rustler::nif]
fn worker_load<'a>(
    env: Env<'a>,
    worker: Term<'a>,
    (library, replaces, asks): (u32, Option<u32>, bool),
    path: Binary<'a>,
    load_info: Term<'a>,
) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let mut kept = Vec::new();
    let sent = scratch::encode_one(env, &worker, load_info, &mut kept, control::LOAD_INFO)
        .map_err(|failure| match failure {
            Failure::UnsupportedTerm { message } => Failure::Unsupported { message },
            other => other,
        })
        .and_then(|load_info| {
            // Relaxed: its owner alone says what to load.
            let process = (!worker.begun.load(Ordering::Relaxed)).then(|| Process {
                executors: worker.executors,
                spin_us: worker.spin_us,
                limits: *worker.limits(),
                system: system(),
            });
            let load = Load {
                library,
                replaces,
                asks,
                process,
                path: path.as_slice().to_vec(),
                load_info,
            };
            Worker::tell(worker, env, &ToWorker::Load(load))?;
            worker.begun.store(true, Ordering::Relaxed);
            Ok(())
        });
    if sent.is_err() {
        worker.forget(&kept);
    } else if !kept.is_empty() {
        worker.load_infos.lock().insert(library, kept);
    }
    Ok(done(env, sent))
}

#[rustler::nif]
fn worker_proceed<'a>(env: Env<'a>, worker: Term<'a>, library: u32) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    Ok(done(env, Worker::tell(worker, env, &ToWorker::Proceed { library })))
}

#[rustler::nif]
fn worker_unload<'a>(env: Env<'a>, worker: Term<'a>, library: u32) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    Ok(done(env, Worker::tell(worker, env, &ToWorker::Unload { library })))
}

#[rustler::nif]
fn worker_output<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let mut bytes = vec![0; OUTPUT];
    let got = worker.output.with(|fd| nix::unistd::read(fd, &mut bytes));
    Ok(match got {
        Some(Ok(length @ 1..)) => {
            let bytes = reply::bytes(env, bytes.get(..length).unwrap_or_default());
            (atoms::ok(), bytes).encode(env)
        }
        Some(Err(Errno::EAGAIN | Errno::EINTR)) => atoms::again().encode(env),
        None | Some(Ok(0) | Err(_)) => atoms::closed().encode(env),
    })
}

#[rustler::nif]
fn worker_close<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    close(env, worker, reason)
}

fn close<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    Ok(if Worker::close(Ref::of(worker)?, env, reason) {
        atoms::ok().encode(env)
    } else {
        go_on(env, c"worker_close", close_again, &[worker, reason])
    })
}

unsafe extern "C" fn close_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with worker and reason.
    unsafe {
        scheduled(env, argv, |env, [worker, reason]: [Term<'_>; 2]| {
            close(env, worker, reason)
        })
    }
}

#[rustler::nif]
fn worker_ended<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    ended(env, worker, reason)
}

fn ended<'a>(env: Env<'a>, worker: Term<'a>, reason: Term<'a>) -> NifResult<Term<'a>> {
    let known = (!reason.is_atom()).then_some(reason);
    Ok(if Worker::ended(Ref::of(worker)?, env, known) {
        atoms::ok().encode(env)
    } else {
        go_on(env, c"worker_ended", ended_again, &[worker, reason])
    })
}

unsafe extern "C" fn ended_again(env: *mut ErlNifEnv, _argc: c_int, argv: *const ErlNifTerm) -> ErlNifTerm {
    // SAFETY: called by the VM with worker and reason.
    unsafe {
        scheduled(env, argv, |env, [worker, reason]: [Term<'_>; 2]| {
            ended(env, worker, reason)
        })
    }
}

#[rustler::nif]
fn worker_stop<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    Ok(done(env, Worker::tell(worker, env, &ToWorker::Stop)))
}

#[rustler::nif]
fn worker_awaited<'a>(worker: Term<'a>, pid: Term<'a>) -> NifResult<bool> {
    Ok(Ref::<Worker>::of(worker)?.is_awaited(pid.as_c_arg()))
}

#[rustler::nif]
fn worker_flush<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    let worker = Ref::<Worker>::of(worker)?;
    let taken = worker.releases.take(RELEASES);
    if !taken.is_empty() {
        let message = ToWorker::Release { ids: taken };
        if let Err(failure) = worker.send(&message) {
            if let (ToWorker::Release { ids }, Failure::Busy) = (message, &failure)
                && !worker.releases.put_back(&ids)
            {
                worker.fault();
                return Ok(Failure::protocol("it does not read which objects are given back").term(env));
            }
            return Ok(failure.term(env));
        }
    }
    Ok((atoms::ok(), worker.releases.pending()).encode(env))
}

#[rustler::nif]
fn worker_status<'a>(env: Env<'a>, worker: Term<'a>) -> NifResult<Term<'a>> {
    use crate::atoms as a;
    let worker = Ref::<Worker>::of(worker)?;
    let ring = worker.ring();
    let executors: Vec<ExecutorStatus> = (0..worker.executors).map(|index| ring.executor(index)).collect();
    let calls: u64 = executors
        .iter()
        .fold(0, |sum: u64, executor| sum.wrapping_add(executor.calls));
    let in_progress: Vec<Option<u64>> = executors.iter().map(|executor| executor.call).collect();
    let status = ring.status().map(|status| status_term(env, &status));
    let lacked = ring.lacked().map(|at| monotonic().saturating_sub(at) / 1_000_000);
    let pairs = [
        (a::in_flight(), ring.in_flight().encode(env)),
        (a::slots(), worker.parked.len().encode(env)),
        (a::calls(), calls.encode(env)),
        (a::executors(), in_progress.encode(env)),
        (a::closed(), ring.closed().encode(env)),
        (a::faulty(), worker.faulty.load(Ordering::Relaxed).encode(env)),
        (a::bell_closed(), worker.bell_closed.load(Ordering::Relaxed).encode(env)),
        (a::orphans(), worker.orphans().encode(env)),
        (a::releases(), worker.releases.pending().encode(env)),
        (a::status(), status.encode(env)),
        (a::lacked_ms(), lacked.encode(env)),
    ];
    Ok(map(env, &pairs))
}

fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

fn status_term<'a>(env: Env<'a>, status: &WorkerStatus) -> Term<'a> {
    use crate::atoms as a;
    let age = (status.beats > 0).then(|| monotonic().saturating_sub(status.beat_at) / 1_000_000);
    let pairs = [
        (a::beats(), status.beats.encode(env)),
        (a::beat_age_ms(), age.encode(env)),
        (a::resident(), status.resident.encode(env)),
        (a::objects(), status.objects.encode(env)),
    ];
    map(env, &pairs)
}
