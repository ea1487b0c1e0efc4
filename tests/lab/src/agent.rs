//! What answers inside a host. Its other side is [`crate::control`]'s client in `host.rs`.
//!
//! It owns the port and runs one request at a time. It ends when the lab goes
//! away; the host then powers off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::control::{self, FileRequest, Frame, RunEnd, RunRequest};

/// The name the program is called by to be this.
pub(crate) const PROGRAM: &str = "lab-agent";
/// How often a running script is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How much of a script's output is sent back: its end.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
/// Where a script's output goes while it runs.
const OUTPUT_DIR: &str = "/run/lab";

/// Serves until the lab is gone or wants the host off.
pub(crate) fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{PROGRAM}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    fs::create_dir_all(OUTPUT_DIR)?;
    let mut port = OpenOptions::new().read(true).write(true).open(find_port()?)?;
    control::send(&mut port, control::HELLO, &[])?;
    loop {
        let frame = match Frame::read(&mut port) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            frame => frame?,
        };
        match frame.kind {
            control::RUN => run(&mut port, &frame.value()?)?,
            control::PUSH => push(&mut port, &frame.value()?)?,
            control::PULL => pull(&mut port, &frame.value()?)?,
            control::POWER_OFF => return Ok(()),
            kind => return Err(io::Error::other(format!("a request of unknown kind {kind}"))),
        }
    }
}

/// The port's device, found by its name.
fn find_port() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim_end() == control::PORT {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no port to the lab"))
}

fn run(port: &mut File, request: &RunRequest) -> io::Result<()> {
    // Files rather than pipes: what a script leaves running may keep them open.
    let open = |name: &str| {
        let path = Path::new(OUTPUT_DIR).join(name);
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    };
    let (stdout, stderr) = (open("stdout")?, open("stderr")?);
    let child = Command::new("/bin/sh")
        .args(["-c", &request.script])
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .process_group(0)
        .spawn()?;
    let end = wait(child, Duration::from_millis(request.timeout_ms))?;
    control::send_all(port, control::STDOUT, tail(stdout)?)?;
    control::send_all(port, control::STDERR, tail(stderr)?)?;
    // What still writes there writes to nobody, and the next script starts with files of its own.
    let _ = fs::remove_file(Path::new(OUTPUT_DIR).join("stdout"));
    let _ = fs::remove_file(Path::new(OUTPUT_DIR).join("stderr"));
    control::send_value(port, control::EXIT, &end)
}

/// Waits for the script; kills it and what it started at the end of its time.
fn wait(mut child: Child, timeout: Duration) -> io::Result<RunEnd> {
    let deadline = Instant::now() + timeout;
    let mut timed_out = false;
    loop {
        if let Some(status) = child.try_wait()? {
            let code = status.code().or(status.signal().map(|signal| 128 + signal));
            return Ok(RunEnd { code: code.unwrap_or(-1), timed_out });
        }
        if !timed_out && Instant::now() >= deadline {
            timed_out = true;
            if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                kill_process_group(group, Signal::KILL)?;
            }
        }
        std::thread::sleep(POLL);
    }
}

fn tail(mut file: File) -> io::Result<impl Read> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_BYTES_MAX)))?;
    Ok(file.take(OUTPUT_BYTES_MAX))
}

fn push(port: &mut File, request: &FileRequest) -> io::Result<()> {
    let path = Path::new(&request.path);
    let parent = path.parent().map_or(Ok(()), fs::create_dir_all);
    // Written beside and renamed, so that a program that runs can be replaced.
    let beside = PathBuf::from(format!("{}.pushed", request.path));
    let file = parent.and_then(|()| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(request.mode).open(&beside)
    });
    let mut outcome = file;
    loop {
        let frame = Frame::read(port)?;
        match frame.kind {
            control::DATA => {
                let written = outcome.as_mut().map(|file| io::copy(&mut &*frame.payload, file));
                if let Ok(Err(error)) = written {
                    outcome = Err(error);
                }
            }
            control::END => break,
            kind => return Err(io::Error::other(format!("a push with a frame of kind {kind}"))),
        }
    }
    match outcome.and_then(|_| fs::rename(&beside, path)) {
        Ok(()) => control::send(port, control::DONE, &[]),
        Err(error) => control::send(port, control::FAILED, error.to_string().as_bytes()),
    }
}

fn pull(port: &mut File, request: &FileRequest) -> io::Result<()> {
    match File::open(&request.path) {
        Ok(file) => {
            control::send_all(port, control::DATA, file)?;
            control::send(port, control::END, &[])
        }
        Err(error) => control::send(port, control::FAILED, error.to_string().as_bytes()),
    }
}
