//! A compiled encoder: texts in, one vector of each out.

use crate::error::{LlmError, Result};
use cupola_ir::eval::Stop;
use cupola_ir::{DType, Graph, Tensor};
use cupola_runtime::{Place, Program, RunValue, State};
use std::sync::Arc;

/// Most rows of a run, padding included.
const ROWS: usize = 2048;

/// An encoder. Its graph takes `tokens`, `positions` and perhaps `segments`, `i64[batch, length]`, and
/// `mask: bool[batch, length]`; it gives `embedding: f32[batch, width]`.
pub struct Encoder {
    program: Arc<Program>,
    state: State,
    inputs: Vec<Input>,
    /// Place of the result among the graph's outputs.
    embedding: usize,
    context_len: usize,
    vocab_len: usize,
}

#[derive(Clone, Copy, Debug)]
enum Input {
    Tokens,
    Positions,
    Segments,
    Mask,
}

impl Encoder {
    /// An encoder of texts of up to `context_len` tokens below `vocab_len`.
    ///
    /// # Errors
    /// [`LlmError::NoDecoder`] for a program that is no encoder.
    pub fn new(program: Arc<Program>, context_len: usize, vocab_len: usize) -> Result<Encoder> {
        let graph = program.graph();
        let inputs = graph
            .inputs()
            .iter()
            .map(|v| input_of(graph, graph.input_name(*v)));
        let inputs = inputs.collect::<Result<_>>()?;
        let embedding = graph
            .outputs()
            .iter()
            .position(|(name, _)| &**name == "embedding");
        let none = || LlmError::NoDecoder(graph.name.clone(), "it gives no 'embedding'".into());
        Ok(Encoder {
            embedding: embedding.ok_or_else(none)?,
            inputs,
            state: program.new_state(0),
            program,
            context_len,
            vocab_len,
        })
    }

    /// Most tokens of a text.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// Tokens that there are.
    pub fn vocab_len(&self) -> usize {
        self.vocab_len
    }

    /// The vectors of texts, in their order. Texts of like lengths are computed together.
    ///
    /// # Errors
    /// [`LlmError::Request`] for an empty text or an unknown token, [`LlmError::TooLong`]; what a run finds.
    pub fn embed(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        texts.iter().try_for_each(|text| self.check(text))?;
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(texts[*i].len()));
        let mut vectors = vec![vec![]; texts.len()];
        let mut rest = &order[..];
        while let Some(longest) = rest.first().map(|i| texts[*i].len()) {
            let (batch, others) = rest.split_at((ROWS / longest).clamp(1, rest.len()));
            let chosen: Vec<&[u32]> = batch.iter().map(|i| &texts[*i][..]).collect();
            for (i, vector) in batch.iter().zip(self.run(&chosen, longest)?) {
                vectors[*i] = vector;
            }
            rest = others;
        }
        Ok(vectors)
    }

    fn check(&self, text: &[u32]) -> Result<()> {
        if text.is_empty() {
            return Err(LlmError::Request("a text has no tokens".into()));
        }
        if let Some(token) = text.iter().find(|t| **t as usize >= self.vocab_len) {
            let what = format!(
                "a text has token {token}; there are {} tokens",
                self.vocab_len
            );
            return Err(LlmError::Request(what));
        }
        match text.len() > self.context_len {
            true => Err(LlmError::TooLong {
                prompt: text.len(),
                room: self.context_len,
            }),
            false => Ok(()),
        }
    }

    /// Vectors of texts that are padded to one length.
    fn run(&mut self, texts: &[&[u32]], len: usize) -> Result<Vec<Vec<f32>>> {
        let shape = [texts.len(), len];
        let numbers = |of: &dyn Fn(&[u32], usize) -> i64| {
            let each = texts.iter().flat_map(|text| (0..len).map(|i| of(text, i)));
            Tensor::from_slice(&shape, &each.collect::<Vec<i64>>())
        };
        let value = |input: &Input| {
            let tensor = match input {
                Input::Tokens => numbers(&|text, i| text.get(i).map_or(0, |t| i64::from(*t))),
                Input::Positions => numbers(&|_, i| i as i64),
                Input::Segments => numbers(&|_, _| 0),
                Input::Mask => {
                    let each = texts
                        .iter()
                        .flat_map(|text| (0..len).map(|i| u8::from(i < text.len())));
                    Tensor::new(
                        DType::Bool,
                        shape.to_vec(),
                        each.collect::<Vec<u8>>().into(),
                    )
                }
            };
            RunValue::from(tensor.unwrap_or_else(|| unreachable!("bug: size of an input")))
        };
        let inputs = self.inputs.iter().map(value).collect();
        let places: Vec<Place> = vec![];
        let stop = Stop::default();
        let mut outputs = self.program.run(&mut self.state, inputs, places, &stop)?;
        let found = outputs.swap_remove(self.embedding).to_host()?;
        let values = found
            .as_tensor()
            .and_then(Tensor::to_vec::<f32>)
            .unwrap_or_default();
        let width = values.len() / texts.len();
        Ok(values.chunks(width.max(1)).map(<[f32]>::to_vec).collect())
    }
}

fn input_of(graph: &Graph, name: &str) -> Result<Input> {
    match name {
        "tokens" => Ok(Input::Tokens),
        "positions" => Ok(Input::Positions),
        "segments" => Ok(Input::Segments),
        "mask" => Ok(Input::Mask),
        _ => Err(LlmError::NoDecoder(
            graph.name.clone(),
            format!("it takes '{name}', which encoders do not"),
        )),
    }
}
