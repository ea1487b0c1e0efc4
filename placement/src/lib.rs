//! The planner: snapshot in, plan and report out.
