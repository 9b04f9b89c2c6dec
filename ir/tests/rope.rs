//! Both ways to take a rotation apart mean the same.

use cupola_ir::composite::{CompositeDef, Rope};
use cupola_ir::eval::{Env, run};
use cupola_ir::{DType, Dim, Graph, Tensor, TensorType, Value, ValueId};

fn numbers(shape: &[usize], seed: u32) -> Tensor {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len as u32)
        .map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect();
    Tensor::from_slice(shape, &values).expect("as many as the shape has")
}

fn turned(
    shapes: [&[usize]; 3],
    dtype: DType,
    apart: impl Fn(&mut Graph, &[ValueId]) -> cupola_ir::Result<Vec<ValueId>>,
) -> Vec<f32> {
    let mut g = Graph::new("rope");
    let operands: Vec<ValueId> = (["x", "cos", "sin"].into_iter().zip(shapes))
        .map(|(name, shape)| {
            let dims = shape.iter().map(|&d| Dim::from(d));
            let x = g
                .input(name, TensorType::new(DType::F32, dims))
                .expect("an input");
            match name {
                "x" => g.cast(x, dtype).expect("a cast"),
                _ => x,
            }
        })
        .collect();
    let y = apart(&mut g, &operands).expect("a decomposition")[0];
    let y = g.cast(y, DType::F32).expect("a cast");
    g.output("y", y);
    cupola_ir::verify(&g).expect("a valid graph");
    let inputs = shapes.iter().zip(1..);
    let inputs: Vec<Value> = inputs
        .map(|(shape, seed)| numbers(shape, seed).into())
        .collect();
    let outputs = run(&g, &inputs, &mut Env::default()).expect("a run");
    outputs[0]
        .as_tensor()
        .expect("a tensor")
        .to_vec()
        .expect("floats")
}

#[test]
fn without_joins_a_rotation_is_the_same() {
    let shapes: [[&[usize]; 3]; 4] = [
        [&[3, 2, 8], &[3, 1, 4], &[3, 1, 4]],
        [&[3, 8], &[4], &[3, 4]],
        [&[2], &[1], &[]],
        [&[2, 3, 5, 6], &[5, 3], &[1, 3]],
    ];
    for interleaved in [false, true] {
        let rope = Rope { interleaved };
        for shapes in shapes {
            for dtype in [DType::F32, DType::BF16] {
                let joined = turned(shapes, dtype, |g, x| rope.decompose(g, x));
                let whole = turned(shapes, dtype, |g, x| rope.decompose_without_joins(g, x));
                assert_eq!(
                    joined, whole,
                    "{shapes:?} of {dtype}, interleaved: {interleaved}"
                );
            }
        }
    }
}
