//! Request and response of iceoryx2, from one Rust process to another, both polling: `add(1, 2)` as it would be without a VM.

use crate::partner::Partner;
use crate::{Outcome, nanoseconds, work};
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::request_response;
use std::time::{Duration, Instant};

const LEAVE: [u64; 2] = [u64::MAX; 2];
const DEADLINE: Duration = Duration::from_secs(10);

type Adder = request_response::PortFactory<ipc::Service, [u64; 2], (), u64, ()>;

/// Each of `count` requests, with so much work of our own in front of each.
pub fn round_trips(count: usize, work_ns: u64) -> Outcome<Vec<u64>> {
    // A name of its own: another run may be going on.
    let name = format!("bench_peers/{}", std::process::id());
    let (_node, service) = open(&name)?;
    let client = service.client_builder().create()?;
    let mut partner = Partner::start(&["iceoryx", &name], &[])?;
    let start = Instant::now();
    while service.dynamic_config().number_of_servers() == 0 {
        partner.check()?;
        if start.elapsed() > DEADLINE {
            return Err("the server of iceoryx2 does not come".into());
        }
        std::thread::yield_now();
    }
    let ask = |question: [u64; 2]| -> Outcome<u64> {
        let pending = client.send_copy(question)?;
        loop {
            if let Some(response) = pending.receive()? {
                return Ok(*response.payload());
            }
        }
    };
    let samples = (0..count)
        .map(|_| {
            work(work_ns);
            let start = Instant::now();
            let sum = ask([1, 2])?;
            let took = nanoseconds(start);
            if sum == 3 {
                Ok(took)
            } else {
                Err(format!("1 + 2 is not {sum}").into())
            }
        })
        .collect();
    ask(LEAVE)?;
    partner.wait()?;
    samples
}

/// The other process.
pub fn answer(name: &str) -> Outcome<()> {
    let (_node, service) = open(name)?;
    let server = service.server_builder().create()?;
    loop {
        let Some(request) = server.receive()? else { continue };
        let question = *request.payload();
        request.send_copy(question[0].wrapping_add(question[1]))?;
        if question == LEAVE {
            return Ok(());
        }
    }
}

fn open(name: &str) -> Outcome<(Node<ipc::Service>, Adder)> {
    set_log_level(LogLevel::Error);
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = node
        .service_builder(&name.try_into()?)
        .request_response::<[u64; 2], u64>()
        // As its own benchmark has them: no more than this needs.
        .max_servers(1)
        .max_clients(1)
        .max_response_buffer_size(1)
        .max_active_requests_per_client(1)
        .open_or_create()?;
    Ok((node, service))
}
