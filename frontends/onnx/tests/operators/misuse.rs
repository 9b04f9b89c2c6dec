//! Every operator, used wrongly: with too few or too many operands, of any type and number of axes, empty ones, and
//! attributes that fit and that do not. Each use ends in a valid graph that runs or fails, or in one error that names the
//! operator; never in a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::import_for;
use crate::node::{Case, Extents, FILES};
use cupola_ir::convert::{Lanes, convert, encode};
use cupola_ir::tensor::{Tensor, Value};
use cupola_ir::{DType, eval, verify};
use cupola_onnx::operators;
use cupola_onnx::proto::AttributeProto;
use cupola_onnx::write::{AttributeValue, attribute};

/// Uses of each version of each operator.
const USES: usize = 40;

/// Spoiled forms of each stored case.
const SPOILED: usize = 20;

/// Numbers from a seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

fn operand(r: &mut Numbers, dtype: DType, rank: usize) -> Tensor {
    let shape: Vec<usize> = (0..rank)
        .map(|_| r.pick(&[0, 1, 1, 2, 2, 2, 3, 4]))
        .collect();
    let len = shape.iter().product();
    if dtype == DType::String {
        let texts = (0..len).map(|_| r.pick(&["", "a", "b c"]).to_string());
        return Tensor::from_strings(shape, texts.collect()).expect("a tensor of strings");
    }
    let numbers: Vec<i64> = (0..len)
        .map(|_| r.pick(&[-2, -1, 0, 1, 1, 2, 3, 7]))
        .collect();
    let lanes = convert(Lanes::I(numbers), dtype).expect("numbers of any type");
    encode(&lanes, dtype, &shape, false).expect("a tensor of numbers")
}

/// Attributes that many operators have, well and badly chosen.
fn attributes(r: &mut Numbers) -> Vec<AttributeProto> {
    let numbers = [
        "axis",
        "p",
        "k",
        "num_heads",
        "kv_num_heads",
        "q_num_heads",
        "keepdims",
        "transA",
        "to",
        "dtype",
        "group",
        "blocksize",
        "block_size",
        "output_height",
        "sampling_ratio",
        "num_groups",
        "groups",
        "hidden_size",
        "bits",
        "K",
        "N",
        "n_targets",
        "ceil_mode",
        "largest",
        "size",
        "mode",
        "axes",
        "batch_dims",
        "num_outputs",
        "noop_with_empty_axes",
        "opset",
        "is_causal",
        "onesided",
        "activation",
        "quant_type",
        "time_axis",
        "batch_axis",
        "storage_order",
        "channels_last",
    ];
    let lists = [
        "axes",
        "pads",
        "strides",
        "dilations",
        "kernel_shape",
        "perm",
        "split",
        "starts",
        "ends",
        "shape",
        "pooled_shape",
        "output_shape",
        "output_padding",
        "cats_int64s",
        "keys_int64s",
        "values_int64s",
        "nodes_nodeids",
        "inputdimensions",
        "vectors_per_class",
        "classlabels_ints",
    ];
    let reals = [
        "scale",
        "offset",
        "coefficients",
        "intercepts",
        "rho",
        "support_vectors",
        "activation_alpha",
    ];
    let texts = [
        "mode",
        "auto_pad",
        "equation",
        "direction",
        "norm",
        "pattern",
        "reduction",
        "to",
        "padding_mode",
    ];
    let mut all = vec![];
    for name in numbers {
        if r.below(4) == 0 {
            all.push(attribute(
                name,
                r.pick(&[-9i64, -2, -1, 0, 1, 1, 2, 2, 4, 8, i64::MAX]),
            ));
        }
    }
    for name in lists {
        if r.below(3) == 0 && !all.iter().any(|a: &AttributeProto| a.name() == name) {
            let len = r.below(5);
            let values: Vec<i64> = (0..len)
                .map(|_| r.pick(&[-1i64, 0, 1, 1, 1, 2, 2, 3, i64::MAX]))
                .collect();
            all.push(attribute(name, values));
        }
    }
    for name in reals {
        if r.below(2) == 0 {
            let values: Vec<f32> = (0..r.below(5)).map(|i| i as f32 - 1.0).collect();
            all.push(attribute(name, values));
        }
    }
    for name in texts {
        if r.below(4) == 0 && !all.iter().any(|a: &AttributeProto| a.name() == name) {
            let text = r.pick(&[
                "",
                "linear",
                "max",
                "SAME_UPPER",
                "VALID",
                "reverse",
                "ij,jk->ik",
                "edge",
                "(",
            ]);
            all.push(attribute(name, AttributeValue::String(text.into())));
        }
    }
    all
}

/// One use; the error of the import, if it ends in one.
fn outcome(case: &Case, extents: Extents) -> Option<String> {
    let given = case.given();
    let model = case.model(extents).ok()?;
    let graph = match import_for(&model, &given) {
        Ok(imported) => imported.graph,
        Err(e) => return Some(e.to_string()),
    };
    verify(&graph).unwrap_or_else(|e| panic!("{}: {e}", case.op));
    let values: Vec<Value> = given.into_iter().map(|(_, v)| v).collect();
    // Whether it runs does not matter here.
    let _ = eval::run(&graph, &values, &mut eval::Env::default());
    None
}

/// What went wrong with a use, if anything did.
fn check(case: &Case, extents: Extents) -> Result<(), String> {
    let (op, version) = (&case.op, case.version);
    match catch_unwind(AssertUnwindSafe(|| outcome(case, extents))) {
        Ok(Some(e)) if !e.contains(op) && !e.contains("depends on inputs") => {
            Err(format!("{op} {version}: the error does not name it: {e}"))
        }
        Ok(_) => Ok(()),
        Err(_) => {
            let attributes = case.attributes.iter();
            let set: Vec<String> = attributes
                .map(|a| format!("{}={}{:?}{:?}", a.name(), a.i(), a.ints, a.s))
                .collect();
            Err(format!(
                "{} {op} {version} panics on {:?} {extents:?} {set:?}",
                case.domain, case.inputs
            ))
        }
    }
}

const DTYPES: [DType; 13] = [
    DType::F32,
    DType::F32,
    DType::F32,
    DType::I64,
    DType::I64,
    DType::I32,
    DType::Bool,
    DType::U8,
    DType::I8,
    DType::F16,
    DType::F64,
    DType::String,
    DType::U4,
];

fn any_use(r: &mut Numbers, (domain, op, version): (&str, &str, i64)) -> Case {
    let rank = r.below(6);
    let dtype = r.pick(&DTYPES);
    let inputs = (0..r.below(9))
        .map(|_| {
            // Half of the time alike, so that some uses get far.
            let (dtype, rank) = match r.below(2) {
                0 => (dtype, rank),
                _ => (r.pick(&DTYPES), r.below(6)),
            };
            (r.below(12) > 0).then(|| operand(r, dtype, rank))
        })
        .collect();
    Case {
        name: op.into(),
        domain: domain.into(),
        op: op.into(),
        version,
        attributes: attributes(r),
        inputs,
        outputs: vec![Some(Tensor::scalar(0f32)); 1 + r.below(3)],
        tolerance: (0.0, 0.0),
    }
}

/// Changes one operand, or an attribute, of a use that is right.
fn spoil(r: &mut Numbers, case: &mut Case) {
    let last = case.inputs.len();
    match r.below(6) {
        0 if last > 0 => case.inputs[r.below(last)] = None,
        1 => case.inputs.truncate(r.below(last + 1)),
        2 if !case.attributes.is_empty() => {
            case.attributes.remove(r.below(case.attributes.len()));
        }
        3 if !case.attributes.is_empty() => {
            let at = r.below(case.attributes.len());
            let a = &mut case.attributes[at];
            a.i =
                a.i.map(|_| r.pick(&[-3, -1, 0, 1, 3, 5, i64::MAX, i64::MIN]));
            match a.ints.is_empty() {
                true => {}
                false if r.below(2) == 0 => a.ints.truncate(a.ints.len() - 1),
                false => {
                    let at = r.below(a.ints.len());
                    a.ints[at] = r.pick(&[-7, -1, 0, 3, 99, i64::MAX]);
                }
            }
            a.floats.truncate(a.floats.len() / 2);
        }
        4 if last > 0 => {
            let at = r.below(last);
            let dtype = case.inputs[at].as_ref().map_or(DType::F32, Tensor::dtype);
            let rank = case.inputs[at].as_ref().map_or(2, |t| t.shape().len());
            case.inputs[at] = Some(operand(r, dtype, rank));
        }
        _ if last > 0 => {
            let (dtype, rank) = (r.pick(&DTYPES), r.below(6));
            case.inputs[r.below(last)] = Some(operand(r, dtype, rank));
        }
        _ => {}
    }
}

#[test]
fn no_operator_panics() {
    let mut r = Numbers(1);
    let mut wrong = vec![];
    let mut seen = 0;
    for row in operators() {
        seen += 1;
        for _ in 0..USES {
            let case = any_use(&mut r, row);
            let extents = r.pick(&[Extents::Stated, Extents::Open]);
            wrong.extend(check(&case, extents).err());
        }
    }
    assert!(seen > 300, "only {seen} operators");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_spoiled_use_panics() {
    let mut r = Numbers(2);
    let mut wrong = vec![];
    for file in FILES {
        for _ in 0..SPOILED {
            for mut case in Case::all(file) {
                spoil(&mut r, &mut case);
                let extents = r.pick(&[Extents::Stated, Extents::Open]);
                wrong.extend(check(&case, extents).err());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
