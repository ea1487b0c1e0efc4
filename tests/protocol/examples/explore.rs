//! Explores further than the tests do: `explore MIGRATIONS FAULTS [post-copy]`.

use std::process::ExitCode;

use ballast_protocol::Migrations;
use stateright::{Checker, Model};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let post_copy = words.iter().any(|word| word == "post-copy");
    let bounds: Vec<u8> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let [attempts_max, faults_max] = bounds[..] else {
        eprintln!("usage: explore MIGRATIONS FAULTS [post-copy] (2 1: 5 million states, minutes)");
        return ExitCode::from(2);
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let model = Migrations { attempts_max, faults_max, post_copy };
    let checker = model.checker().threads(threads).spawn_bfs().join();
    println!("{model:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    ExitCode::SUCCESS
}
