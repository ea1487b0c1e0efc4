//! The program `ballast` against a stub controller: what it asks, prints and ends with.

// Helpers outside of test functions, too, fail by panicking.
#![allow(clippy::unwrap_used)]

mod stub;

use ballast_model::ClusterSnapshot;
use serde_json::Value;
use stub::{MIGRATION, Stub};
use tokio::process::Command;

/// How the program ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    /// Its lines with runs of spaces as one, so that widths do not matter.
    fn lines(&self) -> Vec<String> {
        let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        self.out.lines().map(squeezed).collect()
    }
}

async fn ballast(url: &str, args: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(args)
        .env("BALLAST_CONTROLLER", url)
        .env("USER", "alice")
        .env_remove("SUDO_USER")
        .output()
        .await
        .unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn well(url: &str, args: &[&str]) -> Ended {
    let ended = ballast(url, args).await;
    assert_eq!(ended.code, 0, "{args:?}: {}", ended.err);
    ended
}

async fn check_refused(url: &str, args: &[&str], code: i32, expected: &str) {
    let ended = ballast(url, args).await;
    assert_eq!(ended.code, code, "{args:?}: {}", ended.err);
    assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
    assert!(ended.err.starts_with("ballast: ") && ended.err.contains("; "), "{}", ended.err);
    assert!(ended.err.contains(expected), "{}", ended.err);
    assert!(ended.out.is_empty(), "{}", ended.out);
}

#[tokio::test]
async fn tables_are_for_people() {
    let url = Stub::default().serve().await;
    let hosts = well(&url, &["host", "ls"]).await.lines();
    assert_eq!(hosts[1], "host-a active kvm 2 910m 1000m 91% 128.0 MiB 1.0 GiB 12% never");
    assert!(hosts[2].ends_with("never no report for 9s"), "{hosts:?}");
    let vms = well(&url, &["vm", "ls"]).await.lines();
    assert_eq!(vms[1], "web-1 host-a running 1 64.0 MiB 455m 40.0 MiB 1.0 MiB/s full");
    let status = well(&url, &["status"]).await.lines();
    assert!(status.contains(&"hosts 2 (1 unknown)".to_owned()), "{status:?}");
    let moves = well(&url, &["migration", "ls"]).await.lines();
    assert_eq!(
        moves[1],
        format!(
            "{MIGRATION} web-1 host-b host-a completed 100% 3 41.0 MiB 820.0 ms 5.8 ms balancer: level CPU"
        )
    );
    let rules = well(&url, &["rule", "ls"]).await.lines();
    assert_eq!(rules[1], "apart anti-affinity must continuous 9 web-1,web-2 at most 1 on a host");
}

#[tokio::test]
async fn json_is_for_programs() {
    let url = Stub::default().serve().await;
    let hosts = well(&url, &["host", "ls", "-o", "json"]).await.json();
    assert_eq!(hosts[0]["demand"]["cpu_millicores"], 910);
    assert_eq!(hosts[1]["unknown_because"], "no report for 9s");
    assert_eq!(hosts[0]["cpu_baselines"], serde_json::json!(["host", "x86-64-v2"]));
    assert_eq!(hosts[0]["numa"][1]["memory_bytes"], 512 << 20);
    let vm = well(&url, &["-o", "json", "vm", "show", "web-1"]).await.json();
    assert_eq!((&vm["epoch"], &vm["immobile"]), (&7.into(), &Value::Null));
    let shown = well(&url, &["migration", "show", MIGRATION, "-o", "json"]).await.json();
    assert_eq!(shown["downtime_micros"], 5_800);
    let rules = well(&url, &["rule", "ls", "-o", "json"]).await.json();
    assert_eq!(rules[0]["kind"]["type"], "anti_affinity");
}

#[tokio::test]
async fn hardware_is_asked_for_and_shown() {
    let url = Stub::default().serve().await;
    #[rustfmt::skip]
    let create = [
        "vm", "create", "web-3", "--kernel", "/vmlinuz", "--initrd", "/initrd", "--memory", "64MiB",
        "--cpus", "2", "--cpu-baseline", "x86-64-v3", "--hugepages", "--prefault",
        "--disk", "/srv/root.img", "--disk", "/srv/data.img,ro,local,bps=1MiB/s,iops=50",
        "--net", "bridge=br0", "--net", "tap=tap7,mac=02:00:00:00:00:07,pps=9",
    ];
    let lines = well(&url, &create).await.lines();
    for line in [
        "vCPUs 2",
        "CPU baseline x86-64-v3",
        "memory 64.0 MiB, huge pages, taken before the start",
        "initrd /initrd",
        "disks /srv/root.img",
        "/srv/data.img, read-only, local, at most 1.0 MiB/s, at most 50 requests/s",
        "tap tap7, 02:00:00:00:00:07, at most 9 packets/s",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line}: {lines:#?}");
    }
    let vm = well(&url, &[&create[..], &["-o", "json"]].concat()).await.json();
    assert_eq!(vm["memory_pages"], "huge");
    assert_eq!(vm["disks"][0]["shared"], true);
    assert_eq!(vm["disks"][1]["limit_ops_per_sec"], 50);
    assert_eq!(vm["networks"][0]["bridge"], "br0");
    assert_eq!(vm["networks"][0]["mac"].as_str().map(str::len), Some(17), "one is found for it");
    assert_eq!(vm["networks"][1]["limit_packets_per_sec"], 9);
}

#[tokio::test]
async fn what_a_vm_needs_and_a_host_offers_is_said_and_shown() {
    let url = Stub::default().serve().await;
    #[rustfmt::skip]
    let create = [
        "vm", "create", "web-3", "--kernel", "/vmlinuz", "--memory", "64MiB",
        "--needs", "storage:san-1", "--need", "network:dmz", "--one-numa-node",
    ];
    let vm = well(&url, &create).await.lines();
    for line in ["needs network:dmz, storage:san-1", "NUMA fits one node"] {
        assert!(vm.contains(&line.to_owned()), "{line}: {vm:#?}");
    }
    let vm = well(&url, &[&create[..], &["-o", "json"]].concat()).await.json();
    assert_eq!(vm["needs"], serde_json::json!(["network:dmz", "storage:san-1"]));
    assert_eq!(vm["one_numa_node"], true);
    let host = well(&url, &["host", "show", "host-a"]).await.lines();
    for line in [
        "CPU model AuthenticAMD-25-1-91f3c0",
        "CPU baselines host, x86-64-v2",
        "NUMA nodes 500m CPU, 512.0 MiB memory",
        "offers network:dmz, storage:san-1",
    ] {
        assert!(host.contains(&line.to_owned()), "{line}: {host:#?}");
    }
    let two_words = [&create[..7], &["--need", "san 1"]].concat();
    check_refused(&url, &two_words, 2, "which is no word").await;
}

#[tokio::test]
async fn questions_of_capacity_are_answered_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.txt");
    let cluster = "# Four half-empty hosts.\n\
                   host a 8 16G : v-1 1 6G, v-2 1 2G\nhost b 8 16G : v-3 1 8G\n\
                   host c 8 16G : v-4 1 8G\nhost d 8 16G\nask plan\n\nexpect\n";
    std::fs::write(&file, cluster).unwrap();
    let nowhere = "http://127.0.0.1:1";
    let ask = async |question: &[&str]| {
        let mut args = vec!["capacity", "--snapshot", file.to_str().unwrap(), "-o", "json"];
        args.extend(question);
        well(nowhere, &args).await.json()
    };
    let shape = ["--cpu", "1", "--memory", "4GiB"];
    let spare = ask(&[&["spare"][..], &shape].concat()).await;
    assert_eq!(spare["vms"], 2 + 2 + 2 + 4);
    let spare = ask(&[&["spare", "--failures", "1"][..], &shape].concat()).await;
    assert_eq!((&spare["vms"], &spare["vms_without_failures"]), (&5.into(), &10.into()));
    let room = ask(&["room", "--cpu", "1", "--memory", "12GiB"]).await;
    assert_eq!((&room["host"], room["moves"].as_array().unwrap().len()), (&"d".into(), 0));
    let restart = ask(&["restart", "b", "c"]).await;
    assert_eq!(restart["starts"].as_array().unwrap().len(), 2);
    assert_eq!(restart["stranded"].as_array().unwrap().len(), 0);
    let groups = ask(&["reboot-groups"]).await;
    assert_eq!(groups["groups"].as_array().unwrap().len(), 2, "{groups}");
    let off = ask(&["consolidate"]).await;
    assert_eq!(off["empty"][0], "d");
    let table = ["capacity", "restart", "b", "--snapshot", file.to_str().unwrap()];
    let lines = well(nowhere, &table).await.lines();
    assert_eq!(lines.last().map(String::as_str), Some("1 VMs start again, 0 find no place"));
}

#[tokio::test]
async fn changes_carry_who_and_why() {
    let stub = Stub::default();
    let asked = stub.asked.clone();
    let url = stub.serve().await;
    let create =
        ["vm", "create", "web-3", "--kernel", "/g", "--memory", "64MiB", "--host", "host-b"];
    well(&url, &create).await;
    well(&url, &["host", "drain", "host-b", "--wait", "--reason", "new memory"]).await;
    well(&url, &["host", "drain", "host-b", "--goal", "least-disturbing"]).await;
    well(&url, &["automation", "set", "manual"]).await;
    well(&url, &["vm", "migrate", "web-1", "--to", "host-b", "--wait"]).await;
    let file = ["vm", "snapshot", "web-1", "--to", "/s/web-1", "--stop"];
    let said = well(&url, &file).await.lines();
    assert_eq!(
        said,
        [
            "web-1 is in /s/web-1 on host host-a: 3.0 MiB, paused for 5 ms; it has ended and is removed"
        ]
    );
    well(&url, &["vm", "restore", "--from", "/s/web-1", "--host", "host-b"]).await;
    well(&url, &["rule", "set", "pin", "--kind", "vm-host", "--vms", "a", "--hosts", "h"]).await;
    well(&url, &["vm", "rm", "web-1", "web-2"]).await;
    assert_eq!(
        asked.lines(),
        [
            "create web-3 on \"host-b\" by operator:alice: created by hand",
            "drain host-b DRAIN_GOAL_UNSPECIFIED by operator:alice: new memory",
            "drain host-b DRAIN_GOAL_LEAST_DISTURBING by operator:alice: drained by hand",
            "automation AUTOMATION_MANUAL by operator:alice: automation level set by hand",
            "migrate web-1 to \"host-b\" by operator:alice: migrated by hand",
            "snapshot web-1 to /s/web-1, stop true by operator:alice: saved by hand",
            "restore /s/web-1 on host-b by operator:alice: restored by hand",
            "rule pin by operator:alice: set by hand",
            "delete web-1 by operator:alice: removed by hand",
            "delete web-2 by operator:alice: removed by hand",
        ]
    );
}

#[tokio::test]
async fn a_plan_can_be_saved_and_made_again_offline() {
    let url = Stub::default().serve().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot.json");
    let file = file.to_str().unwrap();
    let online = well(&url, &["plan", "show", "--save", file, "-o", "json"]).await.json();
    assert_eq!(online["steps"].as_array().unwrap().len(), 1);
    ClusterSnapshot::read_file(file.as_ref()).unwrap();
    let nowhere = "http://127.0.0.1:1";
    let offline = well(nowhere, &["plan", "show", "--snapshot", file, "-o", "json"]).await.json();
    assert_eq!(offline["steps"], online["steps"]);
    assert_eq!(offline["plan"], Value::Null);
    let curve = offline["curve"].as_array().unwrap();
    assert_eq!(curve.len(), 2);
    assert_eq!(curve[0]["imbalance"], offline["imbalance_before"]);
    assert_eq!(curve[1]["cost_bytes"], offline["steps"][0]["cost_bytes"]);
    assert_eq!(offline["makespan_micros"], offline["steps"][0]["duration_micros"]);
    assert_eq!((&offline["stages"], &offline["steps"][0]["stage"]), (&1.into(), &0.into()));
    let bound = offline["imbalance_bound"].as_f64().unwrap();
    assert!(bound <= offline["imbalance_after"].as_f64().unwrap(), "{offline}");
    let all = well(nowhere, &["plan", "show", "--snapshot", file, "--all"]).await.lines();
    assert_eq!(all.iter().filter(|line| line.starts_with("web-")).count(), 2, "{all:?}");
    let applied = well(&url, &["plan", "apply", "-o", "json"]).await.json();
    assert_eq!(applied["migrations"][0], MIGRATION);
}

#[tokio::test]
async fn what_matters_when_a_host_is_emptied_can_be_chosen_offline() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("drain.txt");
    let text = "host a 16 64G link=1GiB/s draining : v1 1 8G\nhost quick 16 64G link=1GiB/s : w 5 8G\n\
                host slow 16 64G link=128MiB/s\n";
    let (file, nowhere) = (file.to_str().unwrap(), "http://127.0.0.1:1");
    let (uncordoned, fastest) =
        (text.replace(" draining", ""), text.replace("draining", "draining=fastest"));
    for (text, option, goal, to, seconds) in [
        (text, "--drain", "balanced", "slow", 64),
        (text, "--drain", "fastest", "quick", 8),
        (&fastest, "--drain", "balanced", "slow", 64),
        (&uncordoned, "--what-if", "drain a fastest", "quick", 8),
    ] {
        std::fs::write(file, text).unwrap();
        let args = ["plan", "show", "--snapshot", file, option, goal, "-o", "json"];
        let plan = well(nowhere, &args).await.json();
        assert_eq!(plan["steps"][0]["to"], to, "{goal}: {plan}");
        assert_eq!(plan["emptied_micros"], seconds * 1_000_000, "{goal}: {plan}");
    }
    let args = ["plan", "show", "--snapshot", file, "--what-if", "drain a fastest"];
    let shown = well(nowhere, &args).await;
    assert!(shown.out.contains("about 8.00 s until the last VM has left"), "{}", shown.out);
}

#[tokio::test]
async fn the_audit_is_verified_here() {
    let url = Stub::default().serve().await;
    let verified = well(&url, &["audit", "verify", "-o", "json"]).await.json();
    assert_eq!((&verified["entries"], &verified["head_checked"]), (&3.into(), &true.into()));
    let exported = well(&url, &["audit", "ls", "-o", "json"]).await.out;
    assert_eq!(exported.lines().count(), 4);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.jsonl");
    std::fs::write(&file, &exported).unwrap();
    well("http://127.0.0.1:1", &["audit", "verify", "--file", file.to_str().unwrap()]).await;

    let spoilt = Stub { spoilt: 2, ..Stub::default() }.serve().await;
    check_refused(&spoilt, &["audit", "verify"], 1, "entry 2").await;
}

#[tokio::test]
async fn a_history_puts_moves_and_deeds_in_order() {
    let url = Stub::default().serve().await;
    let history = well(&url, &["vm", "history", "web-1"]).await.lines();
    assert_eq!(
        history[1..],
        [
            "2026-11-23T01:04:04.678Z vm.create - host-b succeeded - - operator:root: asked",
            "2026-11-23T01:04:05.678Z migration host-b host-a completed 820.0 ms 5.8 ms balancer: level CPU",
        ]
    );
}

#[tokio::test]
async fn a_console_is_printed_as_it_is() {
    let url = Stub::default().serve().await;
    let whole = well(&url, &["vm", "console", "web-1"]).await;
    assert_eq!(whole.out, "B 1 web-1\nH 0 1 p0 e0\n");
    let rest = well(&url, &["vm", "console", "web-1", "--offset", "10"]).await;
    assert_eq!(rest.out, "H 0 1 p0 e0\n");
}

#[tokio::test]
async fn piped_input_is_typed_at_the_console() {
    let stub = Stub::default();
    let asked = stub.asked.clone();
    let url = stub.serve().await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(["vm", "console", "--attach", "web-1"])
        .env("BALLAST_CONTROLLER", &url)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut input, b"uname\n~.").await.unwrap();
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"H 0 1 p0 e0\n", "from now on");
    let typed = ["una", "me\n", "~."].map(|piece| format!("type {piece:?} by : "));
    assert_eq!(asked.lines(), typed, "no key of it is this program's");
}

#[tokio::test]
async fn every_no_is_one_line_with_its_code() {
    let stub = Stub::default();
    let asked = stub.asked.clone();
    let url = stub.serve().await;
    check_refused(&url, &["vm", "show", "db-1"], 3, "there is no VM db-1").await;
    check_refused(&url, &["vm", "show", "DB"], 2, "\"DB\" is not a valid VM name").await;
    let create = ["vm", "create", "a", "--kernel", "/k", "--memory", "1000"];
    let twice = ["--memory", "64MiB", "--disk", "/a", "--disk", "/a"];
    check_refused(&url, &[&create[..5], &twice].concat(), 2, "names disk /a twice").await;
    check_refused(&url, &create, 2, "multiple of 4 KiB").await;
    check_refused(&url, &["plan", "show", "--snapshot", "/none"], 3, "/none").await;
    check_refused("http://127.0.0.1:1", &["host", "ls"], 6, "127.0.0.1:1").await;
    assert!(asked.lines().is_empty());
}
