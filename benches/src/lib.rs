//! What the benches share: a case of the suite, compiled and ready to run on the CPU.

use anyhow::Result;
use cupola::suite::Case;
use cupola::{Host, Options, Program, Session, Value};
use std::sync::Arc;

/// A session and values for its inputs.
pub struct Ready {
    session: Session,
    inputs: Vec<(String, Value)>,
}

impl Ready {
    /// Compiles a case for the processor, for all its cores.
    ///
    /// # Errors
    /// A case that does not compile.
    pub fn new(case: &Case, host: &Host) -> Result<Ready> {
        let built = case.build()?;
        let program = Program::compile(built.graph, host, &Options::default())?;
        let inputs = built.inputs.into_iter().map(|(n, t)| (n, t.into()));
        Ok(Ready {
            session: Session::new(Arc::new(program)),
            inputs: inputs.collect(),
        })
    }

    /// Runs it once; gives the number of outputs.
    ///
    /// # Errors
    /// What the run finds.
    pub fn run(&mut self) -> Result<usize> {
        let named = self.inputs.iter().map(|(n, v)| (n.as_str(), v.clone()));
        Ok(self.session.run(named.collect())?.len())
    }
}
