//! Explores further than the tests do: `explore MIGRATIONS FAULTS`.

use std::process::ExitCode;

use ballast_protocol::Migrations;
use stateright::{Checker, Model};

fn main() -> ExitCode {
    let bounds: Vec<u8> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [attempts_max, faults_max] = bounds[..] else {
        eprintln!("usage: explore MIGRATIONS FAULTS (2 1: 5 million states, minutes)");
        return ExitCode::from(2);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let model = Migrations { attempts_max, faults_max };
    let checker = model.checker().threads(threads).spawn_bfs().join();
    println!("{model:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    ExitCode::SUCCESS
}
