//! The precedence graph of a plan: an edge from each step to those that wait for it.

use ballast_model::Planning;
use petgraph::dot::{Config, Dot, RankDir};
use petgraph::graph::DiGraph;

/// The graph in the language of Graphviz, time from left to right: `dot -Tsvg` draws it. A step's label names the VM, its
/// way, and when it is expected to run, if the plan's report says so.
pub fn dot(planning: &Planning) -> String {
    let no_labels = [Config::RankDir(RankDir::LR), Config::EdgeNoLabel];
    Dot::with_config(&graph(planning), &no_labels).to_string()
}

fn graph(planning: &Planning) -> DiGraph<String, &'static str> {
    let steps = &planning.plan.steps;
    let mut graph = DiGraph::with_capacity(steps.len(), steps.len());
    let nodes: Vec<_> = (0..steps.len()).map(|n| graph.add_node(label(planning, n))).collect();
    for (step, node) in steps.iter().zip(&nodes) {
        for before in &step.after {
            graph.add_edge(nodes[*before], *node, "");
        }
    }
    graph
}

fn label(planning: &Planning, n: usize) -> String {
    let step = &planning.plan.steps[n];
    let way = format!("{}\n{} → {}\n", step.vm, step.from, step.to);
    let Some(timing) = planning.report.timings.get(n) else { return way };
    let (start, end) = (timing.start, timing.start + timing.duration);
    format!("{way}{:.1} s to {:.1} s\n", start.as_secs_f64(), end.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan, scenario};

    #[test]
    fn an_edge_leads_from_a_step_to_what_waits_for_it() {
        let waits = scenario::parse(include_str!("../scenarios/order-waits.txt")).unwrap();
        let drawn = dot(&plan(&waits.snapshot, &waits.options).unwrap());
        let expected = r#"digraph {
    rankdir="LR"
    0 [ label = "db1\lb → c\l0.0 s to 68.7 s\l" ]
    1 [ label = "big\la → b\l68.7 s to 154.6 s\l" ]
    0 -> 1 [ ]
}
"#;
        assert_eq!(drawn, expected);
    }
}
