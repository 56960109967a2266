$# The sum of whole numbers as f32. Added to the bits of 1.5 * 2^23 they stand in its fraction, and one subtraction makes them f32: GPUs
$# convert integers at a quarter of the rate of their other instructions or less. The sum must be within ±2^22; of 32 products of bytes it is.
$$ macro number(terms)
(bitcast<f32>({{ (["1262485504"] + terms) | join(" + ") }}) - 12582912.0)
$$- endmacro
