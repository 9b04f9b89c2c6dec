//! Running a decoder step by step, by the interpreter or compiled.

#![allow(dead_code, reason = "each test uses some")]

use cupola_ir::{Dim, Tensor, Value};
use cupola_language::LanguageModel;
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program, Session};
use std::sync::Arc;

/// Some positions of one sequence of the batch.
pub struct Rows<'a> {
    pub sequence: usize,
    pub start: usize,
    pub tokens: &'a [i64],
}

/// A compiled decoder with a cache whose pages are dealt to sequences by turns, so that no sequence has neighbours.
pub struct Running {
    session: Session,
    table: Tensor,
}

impl Running {
    /// `batch` sequences of at most `len` positions each.
    pub fn new(
        model: &LanguageModel,
        options: &CompileOptions,
        batch: usize,
        len: usize,
    ) -> Running {
        let config = &model.config;
        let program = Program::compile(model.graph.clone(), &Host::new(), options);
        let program = Arc::new(program.expect("a program"));
        let mut session = Session::new(program);
        let blocks = len.div_ceil(config.page_len);
        let pages = batch * blocks + 1;
        {
            let mut state = session.state_mut();
            for (name, slot) in &model.graph.slots {
                let ty = slot.ty.as_tensor().expect("a tensor");
                let page = ty.dims[1..].iter().filter_map(Dim::as_const);
                let shape: Vec<usize> = std::iter::once(pages)
                    .chain(page.map(|d| d as usize))
                    .collect();
                let size = Tensor::size_of(ty.dtype, &shape).expect("a size");
                let zeros = Tensor::new(ty.dtype, shape, vec![0; size].into());
                let zeros = Value::Tensor(zeros.expect("zeros"));
                state.set_slot(name, zeros).expect("a slot");
            }
        }
        let table: Vec<i64> = (0..batch)
            .flat_map(|s| (0..blocks).map(move |b| (1 + b * batch + s) as i64))
            .collect();
        let table = Tensor::from_slice(&[batch, blocks], &table).expect("a table");
        Running { session, table }
    }

    /// Logits of every row of a step.
    pub fn step(&mut self, parts: &[Rows]) -> Vec<Vec<f32>> {
        let (mut tokens, mut positions, mut sequences) = (vec![], vec![], vec![]);
        for part in parts {
            tokens.extend_from_slice(part.tokens);
            positions.extend((0..part.tokens.len()).map(|i| (part.start + i) as i64));
            sequences.extend(part.tokens.iter().map(|_| part.sequence as i64));
        }
        let wanted: Vec<i64> = (0..tokens.len() as i64).collect();
        let inputs = vec![
            ("tokens", Tensor::vector(&tokens).into()),
            ("positions", Tensor::vector(&positions).into()),
            ("sequences", Tensor::vector(&sequences).into()),
            ("table", self.table.clone().into()),
            ("wanted", Tensor::vector(&wanted).into()),
        ];
        let outputs = self.session.run(inputs).expect("a step");
        let logits = outputs[0].1.as_tensor().expect("a tensor");
        let width = logits.shape()[1];
        let all = logits.to_vec::<f32>().expect("f32");
        all.chunks(width).map(<[f32]>::to_vec).collect()
    }

    /// Logits of every row of one sequence, all at once.
    pub fn whole(&mut self, tokens: &[i64]) -> Vec<Vec<f32>> {
        self.step(&[Rows {
            sequence: 0,
            start: 0,
            tokens,
        }])
    }
}

/// Options of a device.
pub fn on(device: DeviceSpec) -> CompileOptions {
    CompileOptions {
        device,
        verify: true,
        ..CompileOptions::default()
    }
}

/// The position of the largest.
pub fn best(logits: &[f32]) -> i64 {
    let all = logits.iter().enumerate();
    all.max_by(|a, b| a.1.total_cmp(b.1)).expect("logits").0 as i64
}
