//! Is a WGSL text valid, and can every graphics interface be given it? Answered by naga alone, without a GPU.

use naga::back::{hlsl, msl, spv};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

use crate::shader::{Extension, ParamSpace, Shader};

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{stage}: {message}")]
pub struct CheckError {
    /// `parse`, `validate`, or the language it could not be translated to.
    pub stage: &'static str,
    /// naga's message, with the place in the text where it knows one.
    pub message: String,
}

/// A checked text in the languages of the graphics interfaces.
#[derive(Debug, Clone)]
pub struct Translations {
    /// SPIR-V words, for Vulkan.
    pub spirv: Vec<u32>,
    /// Metal Shading Language.
    pub msl: String,
    /// HLSL, for Direct3D 12; empty where that has no such kernels.
    pub hlsl: String,
}

/// Validates a kernel that uses optional parts of the language, with the capabilities they need, and translates it to the
/// languages that have them: Direct3D knows no cooperative matrices, so `hlsl` is empty then.
///
/// # Errors
/// The first stage that refuses it.
pub fn check(shader: &Shader, space: ParamSpace) -> Result<Translations, CheckError> {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    for extension in &shader.extensions {
        capabilities |= match extension {
            Extension::F16 => Capabilities::SHADER_FLOAT16,
            Extension::Subgroups => Capabilities::SUBGROUP,
            Extension::CooperativeMatrix => Capabilities::COOPERATIVE_MATRIX,
        };
    }
    check_wgsl_with(&shader.wgsl(space), capabilities)
}

/// Validates `text` with what every WebGPU device has (`unpack2x16float` counts as a capability in naga), and translates it for Vulkan, Metal and Direct3D 12.
///
/// # Errors
/// The first stage that refuses it.
pub fn check_wgsl(text: &str) -> Result<Translations, CheckError> {
    check_wgsl_with(text, Capabilities::SHADER_FLOAT16_IN_FLOAT32)
}

/// As [`check_wgsl`], for kernels that use optional features.
///
/// # Errors
/// The first stage that refuses it.
pub fn check_wgsl_with(text: &str, capabilities: Capabilities) -> Result<Translations, CheckError> {
    let fail = |stage| move |message: String| CheckError { stage, message };
    let module = naga::front::wgsl::parse_str(text)
        .map_err(|error| fail("parse")(error.emit_to_string(text)))?;
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .subgroup_stages(ShaderStages::COMPUTE)
        .subgroup_operations(SubgroupOperationSet::all())
        .validate(&module)
        .map_err(|error| fail("validate")(error.emit_to_string(text)))?;

    let spv_options = spv::Options {
        lang_version: (1, 3),
        ..Default::default()
    };
    let spirv = spv::write_vec(&module, &info, &spv_options, None)
        .map_err(|error| fail("SPIR-V")(error.to_string()))?;

    let msl_options = msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        ..Default::default()
    };
    let (msl, translated) = msl::write_string(
        &module,
        &info,
        &msl_options,
        &msl::PipelineOptions::default(),
    )
    .map_err(|error| fail("MSL")(error.to_string()))?;
    entry_points(translated.entry_point_names, "MSL")?;

    if capabilities.contains(Capabilities::COOPERATIVE_MATRIX) {
        let hlsl = String::new();
        return Ok(Translations { spirv, msl, hlsl });
    }
    let hlsl_options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        immediates_target: Some(hlsl::BindTarget::default()),
        fake_missing_bindings: true,
        ..Default::default()
    };
    let pipeline_options = hlsl::PipelineOptions::default();
    let mut hlsl = String::new();
    let translated = hlsl::Writer::new(&mut hlsl, &hlsl_options, &pipeline_options)
        .write(&module, &info, None)
        .map_err(|error| fail("HLSL")(error.to_string()))?;
    entry_points(translated.entry_point_names, "HLSL")?;
    Ok(Translations { spirv, msl, hlsl })
}

/// As [`check_wgsl`], for a text of which nothing is known but itself.
///
/// # Errors
/// The first stage that refuses it.
pub fn check_kernel(text: &str) -> Result<Translations, CheckError> {
    let line = Extension::CooperativeMatrix.line();
    let mut capabilities = Capabilities::all();
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, text.contains(line));
    check_wgsl_with(text, capabilities)
}

/// Threads of a workgroup and instructions of all functions of a SPIR-V module with one entry point; `None` if it has no
/// workgroup size.
pub fn spirv_facts(words: &[u32]) -> Option<(u32, usize)> {
    const HEADER: usize = 5;
    const EXECUTION_MODE: u32 = 16;
    const LOCAL_SIZE: u32 = 17;
    const FUNCTION: u32 = 54;
    const FUNCTION_END: u32 = 56;
    let (mut at, mut inside, mut instructions, mut threads) = (HEADER, false, 0, None);
    while let Some(&first) = words.get(at) {
        let (code, len) = (first & 0xffff, (first >> 16).max(1) as usize);
        match (code, words.get(at + 1..at + len)?) {
            (EXECUTION_MODE, &[_, LOCAL_SIZE, x, y, z]) => threads = Some(x * y * z),
            (FUNCTION, _) => inside = true,
            (FUNCTION_END, _) => inside = false,
            _ => instructions += usize::from(inside),
        }
        at += len;
    }
    Some((threads?, instructions))
}

fn entry_points<E: std::fmt::Display>(
    names: Vec<Result<String, E>>,
    stage: &'static str,
) -> Result<(), CheckError> {
    if names.is_empty() {
        return Err(CheckError {
            stage,
            message: "there is no entry point".to_owned(),
        });
    }
    match names.into_iter().find_map(Result::err) {
        Some(error) => Err(CheckError {
            stage,
            message: error.to_string(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{check_wgsl, spirv_facts};

    const GOOD: &str = "@group(0) @binding(0) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(1) fn main() { out[0] = 1u; }";

    #[test]
    fn a_good_text_is_translated() {
        let translations = check_wgsl(GOOD).expect("is valid");
        assert_eq!(translations.spirv.first(), Some(&0x0723_0203));
        let (threads, instructions) = spirv_facts(&translations.spirv).expect("a workgroup");
        assert_eq!(threads, 1);
        assert!((2..20).contains(&instructions), "{instructions}");
        assert!(translations.msl.contains("kernel"));
        assert!(translations.hlsl.contains("numthreads"));
    }

    #[test]
    fn bad_texts_are_named() {
        let stage = |text: &str| check_wgsl(text).err().map(|error| error.stage);
        assert_eq!(stage("fn main("), Some("parse"));
        assert_eq!(stage(&GOOD.replace("= 1u", "= 1.5")), Some("parse"));
        assert_eq!(stage(&GOOD.replace("read_write", "read")), Some("validate"));
        assert_eq!(stage("fn helper() {}"), Some("MSL"));
    }
}
