//! A decoder of one block with random weights, as small as one can be.

#![allow(dead_code, reason = "each test uses some")]

use cupola_ir::composite::PagedAttention;
use cupola_ir::ops::{Bounds, Gather, ReadState, Scatter, ScatterKind, WriteState};
use cupola_ir::{DType, Dim, Graph, Op, Scalar, StateSlot, Tensor, TensorType, ValueId};
use cupola_llm::{Decoder, Engine, EngineOptions, Event, FinishReason, Request, SequenceId};
use cupola_runtime::{CompileOptions, DeviceSpec, Host, Program};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const VOCAB: usize = 24;
pub const PAGE_LEN: usize = 4;
const WIDTH: usize = 8;
const HEADS: usize = 2;
const POSITIONS: usize = 64;

/// Numbers between -1 and 1 that look random.
fn noise(seed: u32, shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let number = |i: u32| {
        let mixed = (i ^ seed.wrapping_mul(0x9E37_79B9)).wrapping_mul(0x85EB_CA6B);
        let mixed = (mixed ^ mixed >> 13).wrapping_mul(0xC2B2_AE35);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..len as u32).map(number).collect();
    Tensor::from_slice(shape, &values).expect("as many as the shape has")
}

fn weight(g: &mut Graph, seed: u32, shape: &[usize]) -> ValueId {
    g.constant(noise(seed, shape)).expect("a constant")
}

fn gather(g: &mut Graph, axes: Vec<usize>, operands: &[ValueId]) -> ValueId {
    let bounds = Bounds::Clamp;
    let gather = Gather {
        axes,
        batch: 0,
        bounds,
    };
    g.one(gather, operands).expect("rows")
}

/// A slot with `rows` of keys or values scattered into it.
fn cached(g: &mut Graph, name: &str, rows: ValueId, page: ValueId, offset: ValueId) -> ValueId {
    let page_dims = [
        Dim::sym("pages"),
        Dim::ONE,
        Dim::from(PAGE_LEN),
        Dim::from(WIDTH),
    ];
    let ty = TensorType {
        dtype: DType::F16,
        dims: page_dims.to_vec(),
    };
    let initial = Tensor::new(DType::F16, vec![0, 1, PAGE_LEN, WIDTH], vec![].into());
    let slot = StateSlot {
        ty: ty.clone().into(),
        initial: initial.expect("no page"),
    };
    g.slots.insert(name.into(), slot);
    let old = g
        .one(
            ReadState {
                slot: name.into(),
                ty: ty.into(),
            },
            &[],
        )
        .expect("a slot");
    let rows = g.cast(rows, DType::F16).expect("narrow");
    let rows = g.unsqueeze(rows, &[1]).expect("one head");
    let (kind, bounds) = (ScatterKind::Set, Bounds::Check);
    let scatter = Scatter {
        axes: vec![0, 2],
        batch: 0,
        kind,
        bounds,
    };
    let new = g
        .one(scatter, &[old, rows, page, offset])
        .expect("scattered");
    g.one(WriteState { slot: name.into() }, &[new])
        .expect("written")
}

/// The graph of the decoder. Another `seed` gives another model.
pub fn graph(seed: u32) -> Graph {
    let mut g = Graph::new("tiny");
    let mut input = |name: &str, dims: &[&str]| {
        let dims = dims.iter().map(|d| Dim::sym(d)).collect();
        g.input(
            name,
            TensorType {
                dtype: DType::I64,
                dims,
            },
        )
        .expect("an input")
    };
    let tokens = input("tokens", &["rows"]);
    let positions = input("positions", &["rows"]);
    let sequences = input("sequences", &["rows"]);
    let table = input("table", &["batch", "blocks"]);
    let wanted = input("wanted", &["outs"]);
    let g = &mut g;
    let page_len = g.number(PAGE_LEN as f64, DType::I64).expect("a number");
    let block = g.binary(Scalar::Div, positions, page_len).expect("block");
    let offset = g.binary(Scalar::Mod, positions, page_len).expect("offset");
    let page = gather(g, vec![0, 1], &[table, sequences, block]);
    let embedding = weight(g, seed, &[VOCAB, WIDTH]);
    let places = weight(g, seed + 1, &[POSITIONS, WIDTH]);
    let x = gather(g, vec![0], &[embedding, tokens]);
    let place = gather(g, vec![0], &[places, positions]);
    let x = g.binary(Scalar::Add, x, place).expect("a sum");
    let mut product = |x, seed, wide| {
        let w = weight(g, seed, &[WIDTH, wide]);
        g.matmul(x, w).expect("a product")
    };
    let q = product(x, seed + 2, HEADS * WIDTH);
    let (k, v) = (product(x, seed + 3, WIDTH), product(x, seed + 4, WIDTH));
    let q = g
        .reshape(q, &[Dim::sym("rows"), Dim::from(HEADS), Dim::from(WIDTH)])
        .expect("heads");
    let k = cached(g, "key.0", k, page, offset);
    let v = cached(g, "value.0", v, page, offset);
    let attention = PagedAttention {
        scale: 0.5,
        softcap: 0.0,
        window: 0,
    };
    let operands = [q, k, v, table, sequences, positions];
    let mixed = g
        .one(Op::Composite(attention.into()), &operands)
        .expect("attention");
    let mixed = g
        .reshape(mixed, &[Dim::sym("rows"), Dim::from(HEADS * WIDTH)])
        .expect("joined");
    let out = weight(g, seed + 5, &[HEADS * WIDTH, WIDTH]);
    let mixed = g.matmul(mixed, out).expect("a product");
    let x = g.binary(Scalar::Add, x, mixed).expect("a sum");
    let x = gather(g, vec![0], &[x, wanted]);
    let head = weight(g, seed + 6, &[WIDTH, VOCAB]);
    let logits = g.matmul(x, head).expect("logits");
    let mut g = std::mem::take(g);
    g.output("logits", logits);
    g
}

pub fn program_on(device: DeviceSpec) -> Arc<Program> {
    program(7, device)
}

fn program(seed: u32, device: DeviceSpec) -> Arc<Program> {
    let options = CompileOptions {
        device,
        threads: 1,
        ..CompileOptions::default()
    };
    Arc::new(Program::compile(graph(seed), &Host::new(), &options).expect("a program"))
}

pub fn decoder(pages: usize) -> Decoder {
    Decoder::new(program_on(DeviceSpec::Cpu), pages).expect("a decoder")
}

/// Another decoder with the same tokens.
pub fn other_decoder(seed: u32, pages: usize) -> Decoder {
    Decoder::new(program(seed, DeviceSpec::Cpu), pages).expect("a decoder")
}

/// An engine for two texts of up to 40 tokens whose steps have few rows.
pub fn options() -> EngineOptions {
    EngineOptions {
        slots: 3,
        rows: 16,
        rows_beside: 5,
        ..EngineOptions::new(40)
    }
}

pub fn engine(pages: usize, options: EngineOptions) -> Engine {
    Engine::new(decoder(pages), options).expect("an engine")
}

pub fn request(prompt: &[u32], most: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        most,
        ..Request::default()
    }
}

/// Tokens of every text, and how it ended.
pub type Texts = BTreeMap<SequenceId, (Vec<u32>, Option<FinishReason>)>;

/// Steps until nothing is left to do.
pub fn finish(engine: &mut Engine) -> Texts {
    let mut texts = Texts::new();
    for _ in 0..10_000 {
        if engine.is_idle() {
            return texts;
        }
        for event in engine.step().expect("a step") {
            take(&mut texts, event);
        }
    }
    panic!("the engine does not come to an end");
}

pub fn take(texts: &mut Texts, event: Event) {
    let text = texts.entry(event.sequence()).or_default();
    match event {
        Event::Prefill { .. } => {}
        Event::Token { token, .. } => text.0.push(token),
        Event::Finished { reason, .. } => text.1 = Some(reason),
        Event::Failed { error, .. } => panic!("{error}"),
    }
}

/// The tokens that follow a prompt when there is nothing else, the whole prompt is one step and nothing is reused.
pub fn alone(request: Request) -> Vec<u32> {
    let options = EngineOptions {
        rows: 64,
        reuse: false,
        ..EngineOptions::new(60)
    };
    let mut engine = engine(20, options);
    let id = engine.submit(request).expect("taken");
    finish(&mut engine)[&id].0.clone()
}
