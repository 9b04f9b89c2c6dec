fn ${NAME}_value(code: u32) -> f32 {
    let magnitude = code & (${SIGN}u - 1u);
    let sign = (code & ${SIGN}u) << ${SIGN_SHIFT}u;
${DECODE_SPECIAL}    if (magnitude >> ${MANTISSA}u) == 0u {
        let small = f32(magnitude) * bitcast<f32>(${UNIT}u);
        return bitcast<f32>(bitcast<u32>(small) | sign);
    }
    return bitcast<f32>(((magnitude << ${WIDEN}u) + (${REBIAS}u << 23u)) | sign);
}

fn ${NAME}_bits(value: f32, saturate: bool) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 31u) << ${SIGN_AT}u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return ${NAN};
    }
    var code = bitcast<u32>(bitcast<f32>(magnitude) + bitcast<f32>(${MAGIC}u)) - ${MAGIC}u;
    if magnitude >= ${SMALLEST_NORMAL}u {
        code = ((magnitude + ${HALF}u + ((magnitude >> ${WIDEN}u) & 1u)) >> ${WIDEN}u) - ${REBIAS_CODE}u;
    }
    if code > ${LARGEST}u {
        return ${BEYOND};
    }
${ENCODE_ZERO}    return sign | code;
}
