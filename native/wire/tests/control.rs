//! The messages outside of calls: round trips, versions, bounds, hostile packets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails where it stands")]

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use snakepit_wire::control::{
    ARITY, ControlError, EXECUTORS, FUNCTIONS, Failed, FromWarden, FromWorker, Function, LABEL, LOAD_INFO, Load,
    Loaded, MESSAGE, MISSING, Message, NUMBERS, PACKET, PATH, Process, RELEASES, SYMBOL, Stage, Status, System,
    ToWarden, ToWorker, VERSION, VERSION_TEXT, decode, encode,
};
use snakepit_wire::service::{self, ATOM, INTEGER, KEY, Keyed, NAMES, Named, PIECE, Reply, Request};
use snakepit_wire::{Limits, Name, NameKind};

fn to_warden() -> impl Strategy<Value = ToWarden> {
    prop_oneof![
        (any::<u64>(), "[a-z/ é]{0,30}", any::<u64>()).prop_map(|(token, label, memory)| ToWarden::Start {
            token,
            label,
            memory
        }),
        (any::<u64>(), any::<i32>()).prop_map(|(token, signal)| ToWarden::Kill { token, signal }),
    ]
}

fn from_warden() -> impl Strategy<Value = FromWarden> {
    let status = prop_oneof![
        any::<i32>().prop_map(Status::Exit),
        any::<i32>().prop_map(Status::Signal)
    ];
    prop_oneof![
        (any::<u16>(), any::<u32>()).prop_map(|(version, pid)| FromWarden::Hello { version, pid }),
        (any::<u64>(), any::<u32>()).prop_map(|(token, pid)| FromWarden::Started { token, pid }),
        (any::<u64>(), "[a-z_]{0,20}", any::<i32>()).prop_map(|(token, call, errno)| FromWarden::NotStarted {
            token,
            call,
            errno
        }),
        (any::<u64>(), any::<u32>(), status).prop_map(|(token, pid, status)| FromWarden::Exited {
            token,
            pid,
            status
        }),
    ]
}

fn system(erts: String) -> System {
    System {
        driver: (3, 3),
        nif: (2, 16),
        erts,
        release: "25".into(),
        threads: 1,
        smp: 1,
        async_threads: 1,
        schedulers: 2,
        dirty_schedulers: 1,
    }
}

fn to_worker() -> impl Strategy<Value = ToWorker> {
    let limits =
        (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(bytes, words, depth)| Limits { bytes, words, depth });
    let system = (any::<[i32; 9]>(), "[0-9.]{0,64}", "[0-9]{0,8}").prop_map(|(numbers, erts, release)| System {
        driver: (numbers[0], numbers[1]),
        nif: (numbers[2], numbers[3]),
        erts,
        release,
        threads: numbers[4],
        smp: numbers[5],
        async_threads: numbers[6],
        schedulers: numbers[7],
        dirty_schedulers: numbers[8],
    });
    let process =
        (0..=EXECUTORS, any::<u32>(), limits, system).prop_map(|(executors, spin_us, limits, system)| Process {
            executors,
            spin_us,
            limits,
            system,
        });
    let load = (
        0..NUMBERS,
        prop::option::of(0..NUMBERS),
        any::<bool>(),
        prop::option::of(process),
        vec(any::<u8>(), 0..300),
        vec(any::<u8>(), 0..300),
    )
        .prop_map(|(library, replaces, asks, process, path, load_info)| Load {
            library,
            replaces,
            asks,
            process,
            path,
            load_info,
        });
    prop_oneof![
        load.prop_map(ToWorker::Load),
        vec(any::<u64>(), 0..100).prop_map(|ids| ToWorker::Release { ids }),
        Just(ToWorker::Stop),
        (0..NUMBERS).prop_map(|library| ToWorker::Proceed { library }),
        (0..NUMBERS).prop_map(|library| ToWorker::Unload { library }),
        (any::<u32>(), reply()).prop_map(|(request, reply)| ToWorker::Answer { request, reply }),
        any::<u64>().prop_map(|monitor| ToWorker::Down { monitor }),
    ]
}

fn named() -> impl Strategy<Value = Named> {
    (0_u8..4, any::<u32>(), any::<u32>()).prop_map(|(kind, index, generation)| {
        Named(Name {
            kind: NameKind::from_byte(kind).unwrap(),
            index,
            generation,
        })
    })
}

fn reply() -> impl Strategy<Value = Reply> {
    let keyed = (named(), vec(any::<u8>(), 0..40)).prop_map(|(name, key)| Keyed { name, key });
    prop_oneof![
        Just(Reply::Yes),
        Just(Reply::No),
        Just(Reply::Refused),
        vec(keyed, 0..20).prop_map(Reply::Names),
        vec(any::<u8>(), 0..=INTEGER).prop_map(Reply::Integer),
        vec(any::<u8>(), 0..80).prop_map(Reply::Key),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let number = any::<u32>;
    let bytes = || vec(any::<u8>(), 0..300);
    prop_oneof![
        (number(), bytes()).prop_map(|(stream, bytes)| Request::Part { stream, bytes }),
        (number(), named(), number(), bytes()).prop_map(|(request, to, stream, term)| Request::Send {
            request,
            to,
            stream,
            term
        }),
        (number(), named(), number(), bytes()).prop_map(|(request, to, stream, term)| Request::Command {
            request,
            to,
            stream,
            term
        }),
        (number(), any::<bool>(), "[a-z_é]{0,30}").prop_map(|(request, port, name)| Request::WhereIs {
            request,
            port,
            name
        }),
        (number(), "[a-z_é]{0,30}").prop_map(|(request, name)| Request::Exists { request, name }),
        (number(), named()).prop_map(|(request, name)| Request::IsAlive { request, name }),
        (number(), 0..=NAMES as u32).prop_map(|(request, count)| Request::References { request, count }),
        (number(), number()).prop_map(|(request, properties)| Request::Unique { request, properties }),
        number().prop_map(|request| Request::Now { request }),
        (number(), any::<u64>(), any::<u64>(), named()).prop_map(|(request, monitor, object, pid)| {
            Request::Monitor {
                request,
                monitor,
                object,
                pid,
            }
        }),
        any::<u64>().prop_map(|monitor| Request::Demonitor { monitor }),
        (number(), named()).prop_map(|(request, name)| Request::Key { request, name }),
        vec(named(), 0..20).prop_map(|names| Request::Keep { names }),
        (vec(named(), 0..20), any::<u64>()).prop_map(|(names, since)| Request::Drop { names, since }),
    ]
}

fn from_worker() -> impl Strategy<Value = FromWorker> {
    let function =
        ("[a-z_]{1,20}", 0_u32..256, 0_u32..3).prop_map(|(name, arity, flags)| Function { name, arity, flags });
    let loaded = (
        0..NUMBERS,
        "[a-z_é]{1,20}",
        vec(function, 0..50),
        any::<u8>(),
        any::<u8>(),
        vec("enif_[a-z_]{1,20}", 0..10),
    )
        .prop_map(|(library, module, functions, nif_major, nif_minor, missing)| Loaded {
            library,
            module,
            functions,
            nif_major,
            nif_minor,
            missing,
        });
    let failed = (prop::sample::select(&Stage::ALL[..]), any::<i64>(), ".{0,100}")
        .prop_map(|(stage, code, message)| Failed { stage, code, message });
    prop_oneof![
        (any::<u16>(), any::<u32>()).prop_map(|(version, pid)| FromWorker::Hello { version, pid }),
        loaded.clone().prop_map(FromWorker::Opened),
        loaded.prop_map(FromWorker::Loaded),
        failed.clone().prop_map(FromWorker::Failed),
        (0..NUMBERS, failed).prop_map(|(library, failed)| FromWorker::NotLoaded { library, failed }),
        (0..NUMBERS).prop_map(|library| FromWorker::Unloaded { library }),
    ]
}

fn round_trip<M: Message + PartialEq + Debug>(message: &M, cut: prop::sample::Index) -> Result<(), TestCaseError> {
    let mut packet = encode(message).unwrap();
    prop_assert_eq!(&decode::<M>(&packet).unwrap(), message);
    prop_assert!(matches!(
        decode::<M>(&packet[..cut.index(packet.len())]),
        Err(ControlError::Malformed(_))
    ));
    packet.push(0);
    prop_assert_eq!(decode::<M>(&packet).unwrap_err(), ControlError::Trailing(1));
    Ok(())
}

/// What is accepted keeps every bound, so it can be sent.
fn hostile<M: Message>(packet: &[u8]) {
    if let Ok(message) = decode::<M>(packet) {
        assert!(encode(&message).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn to_warden_comes_back(message in to_warden(), cut: prop::sample::Index) {
        round_trip(&message, cut)?;
    }

    #[test]
    fn from_warden_comes_back(message in from_warden(), cut: prop::sample::Index) {
        round_trip(&message, cut)?;
    }

    #[test]
    fn to_worker_comes_back(message in to_worker(), cut: prop::sample::Index) {
        round_trip(&message, cut)?;
    }

    #[test]
    fn from_worker_comes_back(message in from_worker(), cut: prop::sample::Index) {
        round_trip(&message, cut)?;
    }

    #[test]
    fn requests_come_back(message in request(), cut: prop::sample::Index) {
        round_trip(&message, cut)?;
    }

    #[test]
    fn noise_is_an_error_or_a_message(rest in vec(any::<u8>(), 0..300)) {
        let mut packet = VERSION.to_be_bytes().to_vec();
        packet.extend(rest);
        hostile::<FromWorker>(&packet);
        hostile::<FromWarden>(&packet);
        hostile::<ToWorker>(&packet);
        hostile::<ToWarden>(&packet);
        hostile::<Request>(&packet);
    }

    #[test]
    fn a_wrong_byte_is_an_error_or_another_message(message in from_worker(), at: prop::sample::Index, byte: u8) {
        let mut packet = encode(&message).unwrap();
        let at = at.index(packet.len());
        packet[at] = byte;
        hostile::<FromWorker>(&packet);
    }
}

#[test]
fn another_version_is_named() {
    let mut packet = encode(&ToWorker::Stop).unwrap();
    packet[1] += 1;
    assert_eq!(
        decode::<ToWorker>(&packet),
        Err(ControlError::Version { found: VERSION + 1 })
    );
}

#[test]
fn an_announced_length_reserves_nothing() {
    // An array of 2^32 - 1 numbers, of which none comes.
    let packet = [
        0,
        VERSION as u8,
        0x81,
        0xA7,
        b'R',
        b'e',
        b'l',
        b'e',
        b'a',
        b's',
        b'e',
        0x91,
        0xDD,
        0xFF,
        0xFF,
        0xFF,
        0xFF,
    ];
    assert!(matches!(decode::<ToWorker>(&packet), Err(ControlError::Malformed(_))));
}

#[test]
fn packets_are_bounded() {
    let ids = vec![u64::MAX; RELEASES];
    let packet = encode(&ToWorker::Release { ids }).unwrap();
    assert!(packet.len() <= PACKET);
    let long = vec![0; PACKET + 1];
    assert_eq!(
        decode::<ToWorker>(&long),
        Err(ControlError::Packet { length: PACKET + 1 })
    );

    let functions = vec![
        Function {
            name: "f".repeat(100),
            arity: 1,
            flags: 0
        };
        1000
    ];
    let loaded = Loaded {
        library: 0,
        module: "m".into(),
        functions,
        nif_major: 2,
        nif_minor: 16,
        missing: vec![],
    };
    assert!(matches!(
        encode(&FromWorker::Loaded(loaded)),
        Err(ControlError::Packet { .. })
    ));
}

fn field<M: Message + Debug>(message: &M) -> &'static str {
    match encode(message) {
        Err(ControlError::Field { field, length, limit }) => {
            assert_eq!(length, limit + 1);
            field
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_is_bounded() {
    assert_eq!(
        field(&ToWarden::Start {
            token: 0,
            label: "l".repeat(LABEL + 1),
            memory: 0
        }),
        "label"
    );
    let call = "c".repeat(SYMBOL + 1);
    assert_eq!(
        field(&FromWarden::NotStarted {
            token: 0,
            call,
            errno: 0
        }),
        "call"
    );
    assert_eq!(
        field(&ToWorker::Release {
            ids: vec![0; RELEASES + 1]
        }),
        "ids"
    );

    let load = |path, info, executors, library, replaces| {
        let load = Load {
            library,
            replaces,
            asks: false,
            process: Some(Process {
                executors,
                spin_us: 0,
                limits: Limits::DEFAULT,
                system: system(String::new()),
            }),
            path: vec![b'p'; path],
            load_info: vec![106; info],
        };
        field(&ToWorker::Load(load))
    };
    let with_system = |erts| {
        let load = Load {
            library: 0,
            replaces: None,
            asks: false,
            process: Some(Process {
                executors: 1,
                spin_us: 0,
                limits: Limits::DEFAULT,
                system: system(erts),
            }),
            path: Vec::new(),
            load_info: Vec::new(),
        };
        field(&ToWorker::Load(load))
    };
    assert_eq!(with_system("1".repeat(VERSION_TEXT + 1)), "erts");
    assert_eq!(load(PATH + 1, 1, 1, 0, None), "path");
    assert_eq!(load(1, LOAD_INFO + 1, 1, 0, None), "load_info");
    assert_eq!(load(1, 1, EXECUTORS + 1, 0, None), "executors");
    assert_eq!(load(1, 1, 1, NUMBERS, None), "library");
    assert_eq!(load(1, 1, 1, 0, Some(NUMBERS)), "library");
    assert_eq!(field(&ToWorker::Proceed { library: NUMBERS }), "library");
    assert_eq!(field(&ToWorker::Unload { library: NUMBERS }), "library");
    assert_eq!(field(&FromWorker::Unloaded { library: NUMBERS }), "library");

    let loaded = |functions: Vec<Function>, missing: Vec<String>| {
        field(&FromWorker::Loaded(Loaded {
            library: 0,
            module: "m".into(),
            functions,
            nif_major: 2,
            nif_minor: 16,
            missing,
        }))
    };
    let function = Function {
        name: "f".into(),
        arity: 0,
        flags: 0,
    };
    assert_eq!(loaded(vec![function; FUNCTIONS + 1], vec![]), "functions");
    let arity = u32::try_from(ARITY).unwrap() + 1;
    assert_eq!(
        loaded(
            vec![Function {
                name: "f".into(),
                arity,
                flags: 0
            }],
            vec![]
        ),
        "arity"
    );
    assert_eq!(loaded(vec![], vec!["s".into(); MISSING + 1]), "missing");
    assert_eq!(loaded(vec![], vec!["s".repeat(SYMBOL + 1)]), "symbol");

    let message = "m".repeat(MESSAGE + 1);
    assert_eq!(
        field(&FromWorker::Failed(Failed {
            stage: Stage::Open,
            code: 0,
            message
        })),
        "message"
    );
}

#[test]
fn requests_and_replies_are_bounded() {
    let name = Named(Name {
        kind: NameKind::Pid,
        index: 1,
        generation: 1,
    });
    let keyed = |length| Keyed {
        name,
        key: vec![0; length],
    };
    let requests = [
        Request::Part {
            stream: 1,
            bytes: vec![0; PIECE + 1],
        },
        Request::Send {
            request: 0,
            to: name,
            stream: 1,
            term: vec![0; PIECE + 1],
        },
        Request::WhereIs {
            request: 1,
            port: false,
            name: "a".repeat(ATOM + 1),
        },
        Request::Exists {
            request: 1,
            name: "a".repeat(ATOM + 1),
        },
        Request::References {
            request: 1,
            count: NAMES as u32 + 1,
        },
        Request::Keep {
            names: vec![name; NAMES + 1],
        },
    ];
    let mut message = service::message_to(name.0).to_vec();
    message.extend([7; PIECE]);
    assert_eq!(service::message(&message).unwrap(), (name.0, &[7; PIECE][..]));
    assert!(matches!(
        service::message(&message[..service::MESSAGE_HEAD - 1]),
        Err(ControlError::Malformed(_))
    ));
    message.push(7);
    assert!(matches!(service::message(&message), Err(ControlError::Field { .. })));
    for request in requests {
        assert!(
            matches!(encode(&request), Err(ControlError::Field { .. })),
            "{request:?}"
        );
    }
    let replies = [
        Reply::Names(vec![keyed(1); NAMES + 1]),
        Reply::Names(vec![keyed(KEY + 1)]),
        Reply::Integer(vec![0; INTEGER + 1]),
        Reply::Key(vec![0; KEY + 1]),
    ];
    for reply in replies {
        let answer = ToWorker::Answer { request: 1, reply };
        assert!(matches!(encode(&answer), Err(ControlError::Field { .. })));
    }
}
