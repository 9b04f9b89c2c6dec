//! `cupola compile`: a program compiled ahead of time.

use crate::args::CompileCommandArgs;
use crate::fail::{Failure, Outcome};
use crate::outputs::write_atomically;
use cupola::Artifact;

/// Compiles a model and writes graph, machine code and packed weights, complete or not at all.
pub fn compile(args: &CompileCommandArgs) -> Outcome {
    let model = super::open(&args.model, &args.compile)?;
    let options = super::options(&args.compile)?;
    let artifact = {
        let _busy = super::busy("compiling");
        Artifact::compile(&model, &super::host(&args.compile), &options)?
    };
    write_atomically(&args.output, |file| artifact.write(file))?;
    let size = args.output.metadata().map(|m| m.len());
    let size = size.map_err(|e| Failure::io("cannot read", &args.output, e))?;
    let (output, pieces) = (args.output.display(), artifact.piece_count());
    println!("{output}: {size} bytes, {pieces} pieces of code and weights");
    Ok(())
}
