//! The user's object: a program with a state of its own.

use crate::error::{Result, RuntimeError};
use crate::program::{Program, RunStats, State};
use cupola_ir::{Tensor, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops a run from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Makes the running or next run fail with [`RuntimeError::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes a cancellation back.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Runs a shared [`Program`] for one caller. Sessions of one program may run at the same time.
pub struct Session {
    program: Arc<Program>,
    state: State,
    cancel: Cancel,
}

impl Session {
    /// A session with fresh state and seed 0.
    pub fn new(program: Arc<Program>) -> Session {
        let state = program.new_state(0);
        Session {
            program,
            state,
            cancel: Cancel::default(),
        }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The state, to save or restore it.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Figures of the last run.
    pub fn stats(&self) -> RunStats {
        self.state.stats
    }

    /// A handle that stops runs from another thread.
    pub fn cancel_handle(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Runs with named inputs; gives named outputs in the graph's order.
    ///
    /// # Errors
    /// [`RuntimeError::Input`] for a missing, unknown or unfit input; otherwise as [`Program::run`].
    pub fn run(&mut self, inputs: Vec<(&str, Value)>) -> Result<Vec<(String, Value)>> {
        let graph = self.program.graph();
        let mut given: Vec<(&str, Option<Value>)> =
            inputs.into_iter().map(|(n, v)| (n, Some(v))).collect();
        let mut ordered = vec![];
        for v in graph.inputs() {
            let name = graph.input_name(*v);
            let value = given
                .iter_mut()
                .find(|(n, _)| *n == name)
                .and_then(|(_, v)| v.take());
            ordered.push(value.ok_or_else(|| RuntimeError::Input {
                name: name.to_string(),
                what: format!("not given; its type is {}", graph.ty(*v)),
            })?);
        }
        if let Some((name, _)) = given.iter().find(|(_, v)| v.is_some()) {
            let names: Vec<&str> = graph
                .inputs()
                .iter()
                .map(|v| graph.input_name(*v))
                .collect();
            let what = format!("no such input; there are {}", names.join(", "));
            return Err(RuntimeError::Input {
                name: (*name).to_string(),
                what,
            });
        }
        let outputs = self.run_ordered(ordered)?;
        let names = self
            .program
            .graph()
            .outputs()
            .iter()
            .map(|(n, _)| n.to_string());
        Ok(names.zip(outputs).collect())
    }

    /// Runs with inputs in the graph's order.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub fn run_ordered(&mut self, inputs: Vec<Value>) -> Result<Vec<Value>> {
        self.program.run(&mut self.state, inputs, &self.cancel.0)
    }

    /// Gives a weight (`param`) its value.
    pub fn set_param(&mut self, name: &str, value: Tensor) {
        self.state.params.insert(name.to_string(), value);
    }
}
