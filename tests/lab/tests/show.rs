//! What `make lab` shows, as a test.

use std::process::Command;

#[test]
fn a_linux_guest_lives_through_a_snapshot() {
    // With less memory than the show has: the snapshot is smaller.
    let show = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["show", "--guest-memory-mib", "256"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&show.stdout);
    println!("{said}");
    assert!(show.status.success(), "{}", String::from_utf8_lossy(&show.stderr));
    // Its steps check themselves; here only that none was left out.
    for step in [
        "ping -c 3",
        "through the tap by TCP",
        "written all of its disk",
        "the counter goes on",
        "power-off:",
        "the host is off",
    ] {
        assert!(said.contains(step), "no word of {step:?}");
    }
}
