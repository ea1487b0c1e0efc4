//! Bad input gets one clear line with the remedy and an exit code, and nothing is left half-done.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use ballast_cli::cluster::StoreKind;
use ballast_proto::v1;
use ballast_tests::{Finished, TestCluster, kvm_or_skip, run, run_as};

use crate::PROGRAM;

const CONTROLLER: &str = "ballast-controller";
const AGENT: &str = "ballast-agent";

/// Exit codes, see docs/exit-codes.md.
mod code {
    pub(crate) const FAILURE: i32 = 1;
    pub(crate) const INVALID: i32 = 2;
    pub(crate) const NOT_FOUND: i32 = 3;
    pub(crate) const REFUSED: i32 = 5;
    pub(crate) const UNAVAILABLE: i32 = 6;
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn controller_config(listen: u16, store: &str) -> String {
    let http = free_port();
    format!("listen = '127.0.0.1:{listen}'\nhttp_listen = '127.0.0.1:{http}'\n[store]\n{store}\n")
}

fn embedded(dir: &Path) -> String {
    format!("kind = 'embedded'\npath = '{}'", dir.join("c.redb").display())
}

async fn start(program: &str, config: &Path) -> Finished {
    run_as(PROGRAM, program, &["--config", config.to_str().unwrap()]).await
}

#[tokio::test]
async fn an_unknown_key_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("surprise = 1\n{}", controller_config(free_port(), &embedded(dir.path())));
    let config = write(dir.path(), "controller.toml", &text);
    start(CONTROLLER, &config)
        .await
        .check_refused(code::INVALID, &["surprise", "controller.toml:1:1"]);
    assert!(!dir.path().join("c.redb").exists(), "nothing half-done");
    let config = write(dir.path(), "agent.toml", "hots = 'a'\n");
    start(AGENT, &config).await.check_refused(code::INVALID, &["hots", "agent.toml"]);
}

#[tokio::test]
async fn a_missing_configuration_is_named() {
    let missing = Path::new("/nonexistent/ballast.toml");
    start(CONTROLLER, missing).await.check_refused(code::NOT_FOUND, &["/nonexistent/ballast.toml"]);
    start(AGENT, missing).await.check_refused(code::NOT_FOUND, &["/nonexistent/ballast.toml"]);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = controller_config(port, &embedded(dir.path()));
    let config = write(dir.path(), "controller.toml", &text);
    let address = format!("127.0.0.1:{port}");
    start(CONTROLLER, &config).await.check_refused(code::FAILURE, &[&address, "another port"]);
}

#[tokio::test]
async fn an_unreachable_store_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("127.0.0.1:{}", free_port());
    let store = format!("kind = 'etcd'\nendpoints = ['{endpoint}']");
    let config = write(dir.path(), "controller.toml", &controller_config(free_port(), &store));
    start(CONTROLLER, &config).await.check_refused(code::UNAVAILABLE, &[&endpoint]);
}

#[tokio::test]
async fn a_store_that_is_no_store_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "c.redb", "somebody's diary\n");
    let text = controller_config(free_port(), &embedded(dir.path()));
    let config = write(dir.path(), "controller.toml", &text);
    start(CONTROLLER, &config).await.check_refused(code::FAILURE, &["c.redb"]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "somebody's diary\n");
}

#[tokio::test]
async fn a_malformed_snapshot_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let show = async |path: &Path| {
        run(PROGRAM, &["plan", "show", "--snapshot", path.to_str().unwrap()]).await
    };
    let cut = write(dir.path(), "cut.json", "{\"format\": 1,\n \"revision\": ");
    show(&cut).await.check_refused(code::INVALID, &["cut.json", "line 2"]);
    let dangling = write(
        dir.path(),
        "dangling.json",
        r#"{"format":1,"revision":1,"taken_at":0,"hosts":[],"vms":[
            {"id":"a","host":"nowhere","size":{"cpu_millicores":1000,"memory_bytes":4096},
             "demand":{"cpu_millicores":0,"memory_bytes":0}}]}"#,
    );
    show(&dangling).await.check_refused(code::INVALID, &["VM a", "nowhere"]);
    show(Path::new("/nonexistent/s.json"))
        .await
        .check_refused(code::NOT_FOUND, &["/nonexistent/s.json"]);
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_named() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let finished = run(PROGRAM, &["--controller", &url, "host", "ls"]).await;
    finished.check_refused(code::UNAVAILABLE, &[&url]);
}

/// What must be as before after a refusal: no VM in the store, none at an agent.
async fn check_no_vms(test: &TestCluster) {
    let vms = test.client.list_vms(v1::ListVmsRequest::default()).await.unwrap().vms;
    assert_eq!(vms, Vec::new());
    for host in test.hosts().await {
        assert_eq!(test.vms_at(&host).await, Vec::new(), "{}", host.host);
    }
}

#[tokio::test]
async fn a_vm_that_cannot_be_created_leaves_nothing() {
    if !kvm_or_skip("creating VMs") {
        return;
    }
    let test = TestCluster::start(PROGRAM, StoreKind::Embedded).await;
    let kernel = test.cluster.kernel();
    let kernel = kernel.to_str().unwrap();
    let create = async |args: &[&str]| {
        let mut all = vec!["--controller", test.cluster.url(), "vm", "create", "big"];
        all.extend(args);
        run(PROGRAM, &all).await
    };
    let huge = create(&["--kernel", kernel, "--memory", "64GiB"]).await;
    huge.check_refused(code::REFUSED, &["big", "64.0 GiB", "2.0 GiB"]);
    check_no_vms(&test).await;
    let missing = create(&["--kernel", "/nonexistent/guest", "--memory", "64MiB"]).await;
    missing.check_refused(code::NOT_FOUND, &["/nonexistent/guest"]);
    check_no_vms(&test).await;
    let name = write(test.cluster.dir(), "no-kernel", "#!/bin/sh\n");
    let wrong = create(&["--kernel", name.to_str().unwrap(), "--memory", "64MiB"]).await;
    wrong.check_refused(code::INVALID, &["no-kernel"]);
    check_no_vms(&test).await;
    // After all that the same name works.
    let made = create(&["--kernel", kernel, "--memory", "64MiB"]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    test.runs_once("big").await;
    let verified = test.audit_verify(PROGRAM).await;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    test.stop().await;
}
