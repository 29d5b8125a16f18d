//! The worker: one process, one library, or several that belong together.
//!
//! ```text
//! main thread    hygiene, Hello, Load -> load the library -> Loaded -> executor 0
//! keeper         control channel, heartbeat, output              (from before the load on)
//! executor_N     the other executors                             (from after the load on)
//! callbacks      destructors, down callbacks, further libraries, the end of all (from the first of them on)
//! select         descriptors that the library waits for          (from the first of them on)
//! ```

use crate::channel::{Requests, VmTime};
use crate::executor;
use crate::libraries::{self, bounded, tell};
use crate::packet::{Packets, Received};
use crate::{exit, host, keeper, process, thread};
use snakepit_shm_core::ring::bell::{Listener, Ringer};
use snakepit_shm_core::ring::worker::WorkerRing;
use snakepit_wire::control::{self, Failed, FromWorker, Load, Process, Stage, ToWorker};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

const CONTROL: RawFd = 3;
const RING: RawFd = 4;
const BELL_IN: RawFd = 5;
const BELL_OUT: RawFd = 6;

/// For the VM to say what to load; it says so as soon as it knows that the worker was started.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the role; the code to leave with.
pub fn run(parent: libc::pid_t, memory: u64) -> i32 {
    if !process::die_with_parent(parent) {
        return exit::ORPHAN;
    }
    // Before there is a thread, whose stack would be counted and could not be refused.
    if memory > 0 {
        process::bounded_memory(memory);
    }
    thread::set_name(c"snakepit_worker");
    process::default_signals();
    process::ignore_polite_signals();
    process::no_core();
    process::first_when_memory_ends();
    process::line_buffered_output();
    let vm: &'static Packets = match descriptors_in_order().and_then(|()| Packets::adopt(CONTROL)) {
        Ok(vm) => Box::leak(Box::new(vm)),
        Err(error) => {
            process::complain(format_args!("no control channel at descriptor {CONTROL}: {error}"));
            return exit::USAGE;
        }
    };
    tell(
        vm,
        &FromWorker::Hello {
            version: control::VERSION,
            pid: std::process::id(),
        },
    );
    match serve(vm) {
        Ok(()) => exit::DONE,
        Err(Leave::With(code)) => code,
        Err(Leave::Failed(failed)) => {
            tell(vm, &FromWorker::Failed(failed));
            exit::NOT_LOADED
        }
    }
}

/// Why a worker leaves before it was told to.
enum Leave {
    With(i32),
    Failed(Failed),
}

fn serve(vm: &'static Packets) -> Result<(), Leave> {
    let ring: &'static WorkerRing = Box::leak(Box::new(attach()?));
    host::when_memory_lacks(Box::leak(Box::new(|| ring.lacked(keeper::monotonic()))));
    host::register_barriers();
    let (load, process) = wait_for_load(vm)?;
    keeper::start(vm, ring).map_err(|error| broken(format!("no thread can be started: {error}")))?;
    host::limits(process.limits);
    host::tell_of(process.system.clone());
    host::follow(Box::leak(Box::new(VmTime::new(ring))));
    host::connect(Box::leak(Box::new(Requests::new(ring))));
    let loaded = libraries::load(vm, &load).map_err(Leave::Failed)?;
    let executors = u32::from(process.executors).clamp(1, ring.plan().executors) as u16;
    let spin = Duration::from_micros(process.spin_us.into());
    let mut others = Vec::new();
    for index in 1..executors {
        let other = thread::spawn(c"executor", move || executor::serve(ring, index, spin))
            .map_err(|error| broken(format!("executor {index} of {executors} cannot be started: {error}")))?;
        others.push(other);
    }
    tell(vm, &FromWorker::Loaded(loaded));
    executor::serve(ring, 0, spin);
    for other in others {
        other.join();
    }
    if ring.stopped() {
        host::unload_all();
    }
    process::flush_output();
    Ok(())
}

/// 3 to 6 are ours and nobody's whom the library may start; there are no more.
fn descriptors_in_order() -> std::io::Result<()> {
    process::close_from(BELL_OUT + 1)?;
    (CONTROL..=BELL_OUT).try_for_each(process::close_on_exec)
}

fn attach() -> Result<WorkerRing, Leave> {
    // SAFETY: open, as `descriptors_in_order` has found; they were given to this role alone.
    let [ring, into, out] = [RING, BELL_IN, BELL_OUT].map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    let attached = WorkerRing::attach(ring.as_fd(), Listener::from_fd(into), Ringer::from_fd(out));
    attached.map_err(|error| broken(format!("the ring cannot be used: {error}")))
}

fn wait_for_load(vm: &Packets) -> Result<(Load, Process), Leave> {
    let mut buffer = vec![0; control::PACKET];
    let until = Instant::now() + LOAD_DEADLINE;
    loop {
        match vm.receive(&mut buffer) {
            Received::Packet { length, .. } => {
                return match control::decode(&buffer[..length]) {
                    Ok(ToWorker::Load(load)) => match load.process.clone() {
                        Some(process) => Ok((load, process)),
                        None => Err(Leave::With(exit::PROTOCOL)),
                    },
                    Ok(ToWorker::Stop) => Err(Leave::With(exit::DONE)),
                    Ok(_) => Err(Leave::With(exit::PROTOCOL)),
                    Err(error) => Err(broken(format!("the VM's message cannot be read: {error}"))),
                };
            }
            Received::Closed => return Err(Leave::With(exit::DONE)),
            Received::Nothing => {}
        }
        let rest = until.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(Leave::With(exit::NO_LOAD));
        }
        // A signal (SIGCONT, say) ends the wait early, and one more millisecond makes up for what is cut off.
        vm.wait(libc::POLLIN, rest.as_millis() as libc::c_int + 1);
    }
}

fn broken(message: String) -> Leave {
    Leave::Failed(Failed {
        stage: Stage::Worker,
        code: 0,
        message: bounded(message),
    })
}
