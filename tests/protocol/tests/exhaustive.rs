//! Every state that a migration and two faults, or two migrations, can lead to.

use ballast_protocol::Migrations;
use stateright::{Checker, Model};

fn explore(model: Migrations) {
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{model:?}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

#[test]
fn one_migration_and_any_two_faults() {
    explore(Migrations { attempts_max: 1, faults_max: 2, post_copy: false });
}

#[test]
fn two_migrations_without_faults() {
    explore(Migrations { attempts_max: 2, faults_max: 0, post_copy: false });
}

#[test]
fn a_guest_that_runs_before_its_memory_is_there_and_any_two_faults() {
    explore(Migrations { attempts_max: 1, faults_max: 2, post_copy: true });
}
