//! What host and agent say to each other: frames in pieces of any size, requests, configurations. What parses is written again as what
//! means the same.
#![no_main]

use fuzz::{Input, Seeds, bounded};
use wirevm_agent::config::Config;
use wirevm_agent::frame::{Decoder, FromAgent, HEADER_LEN, Message, PAYLOAD_MAX, ToAgent};
use wirevm_agent::request::{Command, Request};

fuzz::target!(seeds, run);

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    // Text of several fields for one that is a byte long.
    bounded(64 * data.len() + (1 << 20), || match input.u8() % 4 {
        0 => frames::<ToAgent>(input),
        1 => frames::<FromAgent>(input),
        2 => {
            if let Ok(request) = Request::parse(input.rest()) {
                assert_eq!(Request::parse(&request.to_bytes().unwrap()), Ok(request));
            }
        }
        _ => {
            if let Ok(config) = Config::parse(input.rest()) {
                assert_eq!(Config::parse(&config.to_bytes().unwrap()), Ok(config));
            }
        }
    });
}

fn frames<M: Message + PartialEq + std::fmt::Debug>(mut input: Input<'_>) {
    let piece = 1 + usize::from(input.u8()) * 16;
    let bytes = input.rest();
    let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
    'all: for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next::<M>() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => break 'all,
            }
        }
    }
    assert!(messages.len() <= bytes.len() / HEADER_LEN);
    let mut encoded = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut encoded));
    let mut decoder = Decoder::default();
    decoder.push(&encoded);
    for message in messages {
        // Without bytes there is no frame of a stream; text that is no UTF-8 is longer once it is.
        if encoded.len() < PAYLOAD_MAX
            && !format!("{message:?}").contains('\u{fffd}')
            && !format!("{message:?}").ends_with("([])")
        {
            assert_eq!(decoder.next(), Ok(Some(message)));
        } else {
            break;
        }
    }
}

fn seeds() -> Seeds {
    let with = |kind: u8, bytes: Vec<u8>| [&[kind, 1][..], &bytes].concat();
    let bare = |kind: u8, bytes: Vec<u8>| [&[kind][..], &bytes].concat();
    let mut to = Vec::new();
    let window = wirevm_agent::frame::Window { rows: 25, columns: 80 };
    for message in [
        ToAgent::Part(vec![1; 9]),
        ToAgent::Request(vec![2; 9]),
        ToAgent::Stdin(vec![3; 9]),
        ToAgent::StdinEnd,
        ToAgent::Signal(15),
        ToAgent::Window(window),
    ] {
        message.encode(&mut to);
    }
    let mut from = Vec::new();
    for message in [
        FromAgent::Stdout(vec![1; 9]),
        FromAgent::Stderr(vec![2; 9]),
        FromAgent::Credit(512),
        FromAgent::Killed(9),
        FromAgent::Failed { status: 127, text: "not there".into() },
        FromAgent::Answer(vec![4; 4]),
        FromAgent::Exited(3),
    ] {
        message.encode(&mut from);
    }
    let command = Command {
        argv: vec!["sh".into(), "-c".into()],
        env: vec!["A=b".into()],
        cwd: Some("/tmp".into()),
        user: Some("1:2".into()),
        terminal: Some(window),
    };
    let document = b"wirevm config 1\0module=a.ko\0root.block=root\0root.fstype=erofs\0root.overlay=on\0share=t\0\
        share.directory=/mnt\0share.ro=off\0hostname=h\0arg=a\0network=on\0clock=5\0port=1024\0init=/sbin/init\0";
    let virtiofs = b"wirevm config 1\0root.virtiofs=root\0root.overlay=off\0";
    vec![
        ("to-agent".into(), with(0, to)),
        ("from-agent".into(), with(1, from)),
        ("exec".into(), bare(2, Request::Exec(command).to_bytes().unwrap())),
        ("ready".into(), bare(2, Request::Ready.to_bytes().unwrap())),
        ("config".into(), bare(3, document.to_vec())),
        ("virtiofs".into(), bare(3, virtiofs.to_vec())),
    ]
}
