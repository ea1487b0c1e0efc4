//! `ballast bench`: the planner's parts on public problems, one problem a call.
//!
//! Each prints one line of JSON, so that a table can be made of many runs. What
//! was found is checked by one that shares nothing with the solver before
//! anything is printed: plans are replayed by the simulator, reassignments are
//! weighed by the challenge's rules. `shadow` reports a replay itself.

mod balance;
mod btrplace;
mod fragments;
mod input;
mod line;
mod roadef;
mod shadow;

use ballast_model::{Refusal, RefusalCode};
use ballast_placement::simulate;

use crate::args::BenchCommand;

/// How many interleavings of a long plan are replayed.
const REPLAYS: usize = 4;

pub(super) fn run(command: BenchCommand) -> Result<(), Refusal> {
    match command {
        BenchCommand::Balance(args) => balance::run(&args),
        BenchCommand::Btrplace { file } => btrplace::run(&file),
        BenchCommand::Fragments { file, moves, seconds, seed, threads, unit, out } => {
            let options = fragments::Options { moves, seconds, seed, threads, unit };
            fragments::run(&file, &options, out.as_deref())
        }
        BenchCommand::Roadef(args) => roadef::run(&args),
        BenchCommand::Shadow(args) => shadow::run(&args),
    }
}

/// Refuses a plan that the simulator refuses.
fn replay(world: &simulate::World, acts: &[simulate::Act], seed: u64) -> Result<(), Refusal> {
    simulate::replay(world, acts, REPLAYS, seed).map(|_| ()).map_err(|fault| {
        Refusal::new(
            RefusalCode::Internal,
            format!("the simulator refuses the plan: {fault}"),
            "report a defect with the input file",
        )
    })
}
