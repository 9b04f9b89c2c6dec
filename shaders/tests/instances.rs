//! Every instance of every template is valid WGSL and translates to SPIR-V, MSL and HLSL. No GPU is needed.

use cupola_ir::BlockFormat;
use cupola_shaders::Windows;
use cupola_shaders::attention::{
    AttentionForm, AttentionMatrices, AttentionShader, Mask, Source, ValueCols,
};
use cupola_shaders::binding::{Access, Binding, Stores, Width};
use cupola_shaders::check;
use cupola_shaders::convolution::{Block, ConvolutionForm, ConvolutionShader, Direction, Order};
use cupola_shaders::cooperative::CooperativeTile;
use cupola_shaders::element::Element;
use cupola_shaders::matmul::{
    Accumulator, InnerAxes, JoinShader, MatmulForm, MatmulShader, Operand, Orientation,
};
use cupola_shaders::scatter::{self, Old, Outside};
use cupola_shaders::shader::{Epilogue, ParamSpace, Shader};
use cupola_shaders::skinny::{Reduction, Skinny, SkinnyRows};
use cupola_shaders::sort::{BlockSize, KeyKind, SortForm, SortShader};
use cupola_shaders::tile::{Direct, FastAxis, Split, Staging, Tile};

/// Checks one kernel with its parameters in uniform space.
fn check(shader: &Shader) {
    if let Err(error) = check::check(shader, ParamSpace::Uniform) {
        let text = shader.wgsl(ParamSpace::Uniform);
        panic!("{}: {error}\n{}", shader.label, numbered(&text));
    }
}

fn numbered(text: &str) -> String {
    text.lines()
        .enumerate()
        .map(|(n, line)| format!("{:4} {line}\n", n + 1))
        .collect()
}

/// Adds a bias by column and scales by a parameter.
fn bias() -> Epilogue {
    Epilogue {
        code: "fn epilogue(value: f32, index: u32, row: u32, col: u32, batch: u32) {
            store_out(index, value * bitcast<f32>(params.scale) + load_bias(col));
        }\n"
        .to_owned(),
        bindings: vec![Binding::read("bias", Element::F16)],
        params: vec!["scale".to_owned()],
    }
}

/// A kernel that copies with the given bindings, each in one window and in several.
fn check_copy(label: &str, source: Binding, sink: Binding, body: &str) {
    let one = copy(label, source, sink, body);
    check(&one);
    let mut divided = one;
    for binding in &mut divided.bindings {
        binding.windows = Windows {
            count: 3,
            size_log2: 27,
            start: 256,
        };
    }
    check(&divided);
}

fn copy(label: &str, source: Binding, sink: Binding, body: &str) -> Shader {
    Shader {
        label: label.to_owned(),
        bindings: vec![source, sink],
        params: vec![],
        extensions: vec![],
        helpers: vec![],
        body: format!(
            "@compute @workgroup_size(64) fn main(@builtin(global_invocation_id) id: vec3<u32>) {{ {body} }}"
        ),
    }
}

#[test]
fn accessors_of_every_element() {
    for element in Element::ALL {
        let read = Binding::read("source", element);
        let write = |stores| Binding::write_as("sink", element, stores);
        let store = "store_sink(id.x, load_source(id.x));";
        let label = format!("{element:?}");
        check_copy(&label, read.clone(), write(Stores::Elements), store);
        let shared = Binding {
            access: Access::ReadShared,
            ..read.clone()
        };
        check_copy(&label, shared, write(Stores::Elements), store);
        let sums = "add_sink(id.x, load_source(id.x)); store_sink(id.x, load_sink(id.x));";
        // 64-bit floats are not added by many threads.
        if element != Element::F64 {
            check_copy(&label, read.clone(), write(Stores::Sums), sums);
        }
        if element.bits() < 32 {
            let words = "store_word_sink(id.x, bits_sink(load_source(id.x)));";
            check_copy(&label, read, write(Stores::Words), words);
        }
        if element.has_fours() {
            let fours = Binding::read_as("source", element, Width::Four);
            let body =
                "store_sink(id.x, load4_source(id.x * 4u).y); store_sink(0u, load_source(id.x));";
            check_copy(&label, fours.clone(), write(Stores::Elements), body);
            let wide = Binding {
                width: Width::Four,
                ..write(Stores::Elements)
            };
            let body = "store4_sink(id.x * 4u, load4_source(id.x * 4u));";
            check_copy(&label, fours, wide, body);
        }
    }
}

/// Floats as floats; integers signed unless both are unsigned.
fn accumulator(lhs: Element, rhs: Element) -> Accumulator {
    match (lhs.value_type(), rhs.value_type()) {
        ("u32", "u32") => Accumulator::U32,
        ("f32", _) | (_, "f32") => Accumulator::F32,
        _ => Accumulator::I32,
    }
}

#[test]
fn scatter() {
    check(&scatter::clear());
    for outside in [Outside::Fault, Outside::Nearest, Outside::Skip] {
        for indices in 1..=scatter::SCATTER_INDICES {
            check(&scatter::link(indices, outside));
        }
    }
    for element in Element::ALL {
        for old in [Old::Apart, Old::Under] {
            check(&scatter::apply(element, old, None, vec![]));
        }
        let held = element.value_type();
        let combine =
            format!("fn combine(old: {held}, update: {held}) -> {held} {{ return update; }}");
        for old in [Old::Apart, Old::Under] {
            check(&scatter::apply(element, old, Some(&combine), vec![]));
        }
        for outside in [Outside::Fault, Outside::Nearest, Outside::Skip] {
            check(&scatter::put(element, 2, outside, Width::One));
            if element.has_fours() {
                check(&scatter::put(element, 1, outside, Width::Four));
            }
        }
    }
}

/// A product of floats in f32.
fn product(lhs: Operand, rhs: Operand, form: MatmulForm) -> MatmulShader {
    MatmulShader {
        lhs,
        rhs,
        out: Element::F32,
        accumulator: Accumulator::F32,
        inner: InnerAxes::One,
        form,
        split: Split::Whole,
        epilogue: Epilogue::default(),
        orientation: Orientation::Normal,
    }
}

/// Within the limits that every device has, or those of one with cooperative matrices.
fn check_product(product: &MatmulShader) {
    let (threads, memory) = match product.form {
        MatmulForm::Cooperative(_) => (1024, 32 << 10),
        MatmulForm::Tiled(_) | MatmulForm::Skinny(_) | MatmulForm::Direct(_) => (256, 16 << 10),
    };
    let shader = product.shader();
    assert!(product.threads() <= threads, "{}", shader.label);
    assert!(product.memory_size() <= memory, "{}", shader.label);
    check(&shader);
}

fn skinny(rows: SkinnyRows, reduction: Reduction, cols: u32) -> MatmulForm {
    MatmulForm::Skinny(Skinny {
        rows,
        threads: 128,
        lanes: match reduction {
            Reduction::Tree => 16,
            Reduction::Subgroups => 128,
        },
        cols,
        reduction,
    })
}

fn cooperative(size: u32, subgroups: [u32; 2], matrices: [u32; 2]) -> MatmulForm {
    MatmulForm::Cooperative(CooperativeTile {
        size,
        lanes: if size == 16 { 32 } else { 8 },
        subgroups,
        matrices,
        step: 32,
    })
}

const FLOATS: [Element; 3] = [Element::F32, Element::F16, Element::Bf16];

#[test]
fn direct_products() {
    let plain = |element| Operand::plain(element, Staging::new(FastAxis::Outer, Width::One));
    for direct in Direct::ALL {
        let form = MatmulForm::Direct(direct);
        for (lhs, rhs) in [(Element::F32, Element::F16), (Element::I8, Element::I8)] {
            check_product(&MatmulShader {
                accumulator: accumulator(lhs, rhs),
                out: accumulator(lhs, rhs).element(),
                ..product(plain(lhs), plain(rhs), form)
            });
        }
        let blocks = Operand::blocks(BlockFormat::Q4_0);
        check_product(&product(plain(Element::F32), blocks, form));
    }
}

#[test]
fn tiled_products() {
    for lhs_staging in Staging::ALL {
        for rhs_staging in Staging::ALL {
            let plain = |lhs, rhs| {
                (
                    Operand::plain(lhs, lhs_staging),
                    Operand::plain(rhs, rhs_staging),
                )
            };
            for tile in Tile::ALL {
                let (lhs, rhs) = plain(Element::F32, Element::F32);
                for split in [Split::Whole, Split::Parts] {
                    let form = MatmulForm::Tiled(tile);
                    check_product(&MatmulShader {
                        split,
                        ..product(lhs, rhs, form)
                    });
                }
            }
            let form = MatmulForm::Tiled(Tile::SMALL);
            for lhs in FLOATS {
                for rhs in FLOATS {
                    let (l, r) = plain(lhs, rhs);
                    check_product(&MatmulShader {
                        out: lhs,
                        ..product(l, r, form)
                    });
                }
            }
            for rounded in [Element::F16, Element::Bf16] {
                let (mut lhs, rhs) = plain(Element::F32, rounded);
                lhs.rounded = Some(rounded);
                check_product(&product(lhs, rhs, form));
            }
            if (lhs_staging.width, rhs_staging.width) == (Width::One, Width::One) {
                let (lhs, rhs) = plain(Element::F16, Element::F32);
                check_product(&MatmulShader {
                    inner: InnerAxes::Many,
                    ..product(lhs, rhs, form)
                });
            }
            for (lhs, rhs) in [
                (Element::I8, Element::I8),
                (Element::U8, Element::I8),
                (Element::I32, Element::I8),
                (Element::I16, Element::I8),
                (Element::U8, Element::U32),
            ] {
                let (l, r) = plain(lhs, rhs);
                let accumulator = accumulator(lhs, rhs);
                check_product(&MatmulShader {
                    out: accumulator.element(),
                    accumulator,
                    ..product(l, r, form)
                });
            }
        }
    }
}

#[test]
fn skinny_products() {
    let inner = |width| Staging::new(FastAxis::Inner, width);
    for rows in SkinnyRows::ALL {
        for rhs in FLOATS {
            for rhs_staging in Staging::ALL {
                let lhs = Operand::plain(Element::F32, inner(Width::One));
                let rhs = Operand::plain(rhs, rhs_staging);
                for split in [Split::Whole, Split::Parts] {
                    check_product(&MatmulShader {
                        split,
                        ..product(lhs, rhs, skinny(rows, Reduction::Tree, 1))
                    });
                }
            }
            let lhs = Operand::plain(Element::F32, inner(Width::Four));
            let rhs = Operand::plain(rhs, inner(Width::Four));
            for cols in [1, 2, 4] {
                for reduction in [Reduction::Tree, Reduction::Subgroups] {
                    check_product(&product(lhs, rhs, skinny(rows, reduction, cols)));
                }
            }
        }
        let bytes = |width| Operand::plain(Element::I8, inner(width));
        check_product(&MatmulShader {
            out: Element::I32,
            accumulator: Accumulator::I32,
            ..product(
                bytes(Width::One),
                bytes(Width::Four),
                skinny(rows, Reduction::Tree, 1),
            )
        });
    }
}

#[test]
fn products_of_blocks() {
    let inner = Staging::new(FastAxis::Inner, Width::Four);
    for &(format, ..) in BlockFormat::TABLE {
        let (lhs, rhs) = (Operand::plain(Element::F32, inner), Operand::blocks(format));
        for form in [
            skinny(SkinnyRows::One, Reduction::Subgroups, 4),
            skinny(SkinnyRows::Eight, Reduction::Tree, 2),
            MatmulForm::Tiled(Tile::MEDIUM),
            cooperative(16, [2, 2], [2, 2]),
        ] {
            check_product(&product(lhs, rhs, form));
        }
        let swapped = MatmulShader {
            orientation: Orientation::Swapped,
            ..product(rhs, lhs, MatmulForm::Tiled(Tile::SMALL))
        };
        check_product(&swapped);
    }
}

#[test]
fn cooperative_products() {
    for form in [
        cooperative(16, [2, 4], [4, 2]),
        cooperative(16, [2, 2], [4, 4]),
        cooperative(8, [2, 2], [2, 2]),
    ] {
        for lhs_staging in Staging::ALL {
            for rhs_staging in Staging::ALL {
                for split in [Split::Whole, Split::Parts] {
                    let lhs = Operand::plain(Element::F32, lhs_staging);
                    let rhs = Operand::plain(Element::F16, rhs_staging);
                    check_product(&MatmulShader {
                        split,
                        ..product(lhs, rhs, form)
                    });
                }
            }
        }
        for fast in [FastAxis::Inner, FastAxis::Outer] {
            let halves = Operand::plain(Element::F16, Staging::new(fast, Width::Halves));
            check_product(&MatmulShader {
                out: Element::F16,
                ..product(halves, halves, form)
            });
        }
    }
}

#[test]
fn products_with_an_epilogue() {
    let one = Operand::plain(Element::F32, Staging::new(FastAxis::Inner, Width::One));
    for form in [
        MatmulForm::Tiled(Tile::MEDIUM),
        skinny(SkinnyRows::Two, Reduction::Tree, 1),
        cooperative(16, [2, 2], [2, 2]),
    ] {
        for orientation in [Orientation::Normal, Orientation::Swapped] {
            check_product(&MatmulShader {
                epilogue: bias(),
                orientation,
                ..product(one, one, form)
            });
            let join = JoinShader {
                out: Element::F32,
                accumulator: Accumulator::F32,
                epilogue: bias(),
                orientation,
            };
            check(&join.shader());
        }
    }
    for accumulator in Accumulator::ALL {
        let join = JoinShader {
            out: accumulator.element(),
            accumulator,
            epilogue: Epilogue::default(),
            orientation: Orientation::Normal,
        };
        check(&join.shader());
    }
}

#[test]
fn attention() {
    let forms = SkinnyRows::ALL
        .iter()
        .flat_map(|&rows| [AttentionForm::Few(rows), AttentionForm::FewSplit(rows)]);
    for form in forms.chain([AttentionForm::Tile, AttentionForm::Join]) {
        for cols in ValueCols::ALL {
            for mask in [
                Mask::Absent,
                Mask::Present(Element::Bool),
                Mask::Present(Element::F32),
                Mask::Present(Element::I32),
            ] {
                for element in [Element::F32, Element::F16, Element::Bf16] {
                    let shader = AttentionShader {
                        source: Source::Strided,
                        query: element,
                        key: element,
                        value: element,
                        mask,
                        out: element,
                        key_width: match (form, cols) {
                            (
                                AttentionForm::Few(_) | AttentionForm::FewSplit(_),
                                ValueCols::Wide,
                            ) => Width::Four,
                            _ => Width::One,
                        },
                        form,
                        cols,
                    };
                    check(&shader.shader());
                }
            }
        }
    }
}

#[test]
fn attention_over_pages() {
    let forms = SkinnyRows::ALL
        .iter()
        .flat_map(|&rows| [AttentionForm::Few(rows), AttentionForm::FewSplit(rows)]);
    for form in forms.chain([AttentionForm::Tile, AttentionForm::Join]) {
        let is_few = matches!(form, AttentionForm::Few(_) | AttentionForm::FewSplit(_));
        for cols in ValueCols::ALL {
            for key in [Element::F32, Element::F16, Element::Bf16] {
                for key_width in [Width::One, Width::Four] {
                    let shader = AttentionShader {
                        source: Source::Paged,
                        query: Element::F32,
                        key,
                        value: key,
                        mask: Mask::Absent,
                        out: Element::F16,
                        key_width: if is_few { key_width } else { Width::One },
                        form,
                        cols,
                    };
                    check(&shader.shader());
                }
            }
        }
    }
}

#[test]
fn attention_on_matrix_units() {
    for (size, lanes, down) in [(8, 8, 1), (8, 32, 4), (8, 32, 1), (16, 32, 2), (16, 64, 1)] {
        for (subgroups, keys, depth, cols) in [(4, 32, 64, 64), (1, 16, 80, 128), (2, 32, 256, 16)]
        {
            let matrices = AttentionMatrices {
                size,
                lanes,
                subgroups,
                down,
                keys,
                depth,
                cols,
            };
            if !matrices.is_even() {
                continue;
            }
            for mask in [Mask::Absent, Mask::Present(Element::Bool)] {
                let shader = AttentionShader {
                    source: Source::Strided,
                    query: Element::F16,
                    key: Element::F16,
                    value: Element::F16,
                    mask,
                    out: Element::F16,
                    key_width: Width::Four,
                    form: AttentionForm::Cooperative(matrices),
                    cols: ValueCols::Narrow,
                };
                check(&shader.shader());
            }
        }
    }
}

/// Every way to divide a convolution whose kernel's last lengths are 3 and 5.
fn convolution_forms() -> Vec<ConvolutionForm> {
    let mut forms = vec![ConvolutionForm::Direct];
    for (down, across) in [(1, 1), (4, 1), (2, 4)] {
        for (strides, dilations) in [([1, 1], [1, 1]), ([2, 1], [1, 3])] {
            forms.push(ConvolutionForm::Block(Block {
                down,
                across,
                strides,
                dilations,
            }));
        }
    }
    for tile in Tile::ALL {
        for dense in [None, Some(Width::One), Some(Width::Four)] {
            forms.push(ConvolutionForm::Tiled(
                tile,
                Order::Channels(dense),
                Split::Whole,
            ));
        }
        for (weights, input) in Staging::ALL.iter().zip([FastAxis::Inner, FastAxis::Outer]) {
            let one = Order::Positions {
                weights: *weights,
                input: Staging::new(input, Width::One),
            };
            forms.push(ConvolutionForm::Tiled(tile, one, Split::Parts));
        }
        let narrow = Tile { step: 4, ..tile };
        for weights in Staging::ALL {
            let four = Order::Positions {
                weights,
                input: Staging::new(FastAxis::Inner, Width::Four),
            };
            forms.push(ConvolutionForm::Tiled(narrow, four, Split::Whole));
        }
    }
    forms
}

#[test]
fn convolution() {
    for form in convolution_forms() {
        let directions = match form {
            ConvolutionForm::Block(_) => vec![Direction::Forward],
            _ => vec![Direction::Forward, Direction::Transposed],
        };
        for direction in directions {
            let elements = [
                (Element::F32, Element::F32),
                (Element::F32, Element::F16),
                (Element::Bf16, Element::Bf16),
                (Element::I8, Element::I32),
            ];
            for (weight, out) in elements {
                let shader = ConvolutionShader {
                    input: out,
                    weight,
                    out,
                    accumulator: accumulator(weight, out),
                    direction,
                    kernel: match form {
                        ConvolutionForm::Block(_) => [0, 3, 5],
                        _ if out == Element::F16 => [0; 3],
                        _ => [1, 3, 5],
                    },
                    form,
                    epilogue: match out {
                        Element::F32 => bias(),
                        _ => Epilogue::default(),
                    },
                };
                assert!(shader.threads() <= 256 && shader.memory_size() <= 16 << 10);
                check(&shader.shader());
            }
        }
    }
}

#[test]
fn sort() {
    for form in [
        SortForm::Rows(BlockSize::Small),
        SortForm::Rows(BlockSize::Large),
        SortForm::Blocks,
        SortForm::Merge,
        SortForm::MergeBlocks,
        SortForm::Finish,
    ] {
        for descending in [false, true] {
            for bits in [8, 16, 32, 64] {
                for kind in [KeyKind::Unsigned, KeyKind::Signed] {
                    check(
                        &SortShader {
                            bits,
                            kind,
                            descending,
                            form,
                        }
                        .shader(),
                    );
                }
            }
            for (bits, infinity) in [(16, 0x7c00), (16, 0x7f80), (32, 0x7f80_0000)] {
                let kind = KeyKind::Float { infinity };
                check(
                    &SortShader {
                        bits,
                        kind,
                        descending,
                        form,
                    }
                    .shader(),
                );
            }
        }
    }
}
