//! Ports on real taps, in a network namespace of the test's own.

use std::os::fd::AsFd;
use std::process::{Command, Output};

use ballast_model::hardware::{Attach, RateLimit};
use ballast_model::{MacAddress, NetworkSpec, RefusalCode, VmId};

use crate::devices::net::announce;
use crate::devices::net::port::Port;

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

fn vm() -> VmId {
    "web-1".parse().unwrap()
}

fn network(attach: Attach) -> NetworkSpec {
    NetworkSpec { attach, mac: MAC, limit: RateLimit::default() }
}

fn tap(name: &str) -> NetworkSpec {
    network(Attach::Tap(name.to_owned()))
}

fn bridge(name: &str) -> NetworkSpec {
    network(Attach::Bridge(name.to_owned()))
}

/// This thread, in a network of its own; false, and said so, where that is not allowed.
fn in_own_network() -> bool {
    // SAFETY: only this thread moves, and no other test shares it.
    let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if !moved || !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("SKIPPED: needs root and /dev/net/tun");
        return false;
    }
    true
}

fn run(command: &str) -> Output {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    output
}

fn shows(command: &str) -> String {
    String::from_utf8(run(command).stdout).unwrap()
}

fn check_refused(spec: &NetworkSpec, code: RefusalCode, words: &str) {
    let refusal = Port::open(&vm(), 0, spec).unwrap_err();
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.to_string().contains(words), "{refusal}");
}

#[test]
fn what_is_not_there_is_named_with_its_remedy() {
    if !in_own_network() {
        return;
    }
    check_refused(&tap("tap0"), RefusalCode::NotFound, "ip tuntap add dev tap0 mode tap");
    check_refused(&bridge("br0"), RefusalCode::NotFound, "ip link add br0 type bridge");
    run("ip link add dummy0 type veth peer name dummy1");
    check_refused(&tap("dummy0"), RefusalCode::InvalidArgument, "is a tap");
    check_refused(&bridge("dummy0"), RefusalCode::InvalidArgument, "not a bridge");
    assert!(!shows("ip -o link").contains("blst"), "nothing is left behind");
}

#[test]
fn a_tap_has_one_user_and_is_released_for_the_next() {
    if !in_own_network() {
        return;
    }
    for flags in ["", "multi_queue"] {
        run(&format!("ip tuntap add dev tap0 mode tap {flags}"));
        let source = Port::open(&vm(), 0, &tap("tap0")).unwrap();
        assert!(shows("ip -o link show tap0").contains("UP"), "it is brought up");
        if flags.is_empty() {
            check_refused(&tap("tap0"), RefusalCode::WrongState, "in use");
            let destination = Port::expect(&vm(), 0, &tap("tap0")).unwrap();
            assert!(!destination.is_connected());
            source.release();
            destination.connect().unwrap();
            assert_eq!(source.connect().unwrap_err().code, RefusalCode::WrongState);
        }
        drop(source);
        run("ip link del tap0");
    }
}

#[test]
fn a_tap_is_made_for_a_bridge_and_goes_with_its_process() {
    if !in_own_network() {
        return;
    }
    run("ip link add br0 type bridge && ip link set br0 mtu 1400 up");
    let ports = || shows("ip -o link show master br0").lines().count();
    let source = Port::open(&vm(), 0, &bridge("br0")).unwrap();
    let destination = Port::expect(&vm(), 0, &bridge("br0")).unwrap();
    assert_eq!(ports(), 2, "source and destination on one host");
    source.release();
    assert!(source.is_connected(), "its own tap is nobody else's");
    let shown = shows("ip -o link show master br0");
    assert_eq!(shown.matches("mtu 1400").count(), 2, "{shown}");
    assert_eq!(source.connect().unwrap().mtu(), 1400);
    let modes = shows("ip -d -o link show master br0");
    assert_eq!(modes.matches("addrgenmode none").count(), 2, "{modes}");
    drop(destination);
    assert_eq!(ports(), 1);
    drop(source);
    assert_eq!(ports(), 0);
}

#[test]
fn an_announcement_moves_the_address_to_its_port() {
    if !in_own_network() {
        return;
    }
    run("ip link add br0 type bridge && ip link set br0 up");
    let source = Port::open(&vm(), 0, &bridge("br0")).unwrap();
    let destination = Port::expect(&vm(), 0, &bridge("br0")).unwrap();
    let place = || {
        let shown = shows("bridge fdb show br br0");
        let line = shown.lines().find(|line| line.starts_with(&MAC.to_string()));
        line.map(|line| line.split_whitespace().nth(2).unwrap().to_owned())
    };
    let say = |port: &Port| {
        let tap = port.connect().unwrap();
        // The link of a tap just brought up takes a moment: until then writing is an error.
        while rustix::io::write(tap.as_fd(), &announce::frame(MAC)).is_err() {
            std::thread::yield_now();
        }
    };
    assert_eq!(place(), None, "nobody has spoken");
    say(&source);
    let before = place().unwrap();
    say(&destination);
    let after = place().unwrap();
    assert_ne!(before, after);
    assert!(after.starts_with("blst"), "{after}");
}

#[test]
fn a_removed_tap_is_found_again() {
    if !in_own_network() {
        return;
    }
    run("ip tuntap add dev tap0 mode tap");
    let port = Port::open(&vm(), 0, &tap("tap0")).unwrap();
    run("ip link del tap0");
    let held = port.connect().unwrap();
    assert!(rustix::io::read(held.as_fd(), &mut [0; 64]).is_err());
    port.lost();
    drop(held);
    assert_eq!(port.connect().unwrap_err().code, RefusalCode::NotFound);
    run("ip tuntap add dev tap0 mode tap");
    port.connect().unwrap();
}
