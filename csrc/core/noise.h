// Philox words to noise of unit variance, bit for bit the same on every IEEE-754 machine.
//
// Every step is one fp32 add, subtract, multiply, divide or square root, rounded once, or an
// integer operation: no libm, no fused multiply-add, no fast-math form. A word x stands for the
// probability (x + 0.5) / 2^32. It is folded at the median, to the integer distance v from it,
// which makes every distribution exactly symmetric: z(~x) == -z(x).
#ifndef FASTUNLEARN_CORE_NOISE_H_
#define FASTUNLEARN_CORE_NOISE_H_

#include <cstdint>

#include "core/lanes.h"
#include "core/platform.h"

namespace fastunlearn {

// A word as its integer distance from the median, in [0, 2^31), and its side in the sign bit.
template <class V>
struct Folded {
  typename V::I v;
  typename V::U sign;  // 0x80000000 below the median, else 0
};

template <class V>
FASTUNLEARN_HD Folded<V> fold(typename V::U word) {
  using I = typename V::I;
  using U = typename V::U;
  const I centred = (I)(word ^ V::splat_u(0x80000000u));
  return {centred ^ (centred >> 31), (U)centred & V::splat_u(0x80000000u)};
}

template <class V>
FASTUNLEARN_HD typename V::F with_sign(typename V::F z, typename V::U sign) {
  return V::from_bits(V::bits(z) ^ sign);
}

// (v + 0.5) * scale: one rounding for the conversion, one for the add; scale is a power of two.
template <class V>
FASTUNLEARN_HD typename V::F to_unit(typename V::I v, float scale) {
  return V::mul(V::add(V::to_float(v), V::splat_f(0.5f)), V::splat_f(scale));
}

// Probability of the tail beyond a folded word, times `scale` * 2^32.
template <class V>
FASTUNLEARN_HD typename V::F tail_probability(typename V::I v, float scale) {
  return to_unit<V>((typename V::I)V::splat_u(0x7FFFFFFFu) - v, scale);
}

// c0 + x (c1 + x (c2 + ...)), one rounding for each multiply and each add.
template <class V, int kTerms>
FASTUNLEARN_HD typename V::F horner(typename V::F x, const float (&c)[kTerms]) {
  typename V::F result = V::mul(x, V::splat_f(c[kTerms - 1]));
  for (int i = kTerms - 2; i > 0; --i) result = V::mul(V::add(result, V::splat_f(c[i])), x);
  return V::add(result, V::splat_f(c[0]));
}

// Natural logarithm of normal positive values, within 2 units in the last place.
template <class V>
FASTUNLEARN_HD typename V::F log_positive(typename V::F x) {
  using F = typename V::F;
  using I = typename V::I;
  using U = typename V::U;
  // atanh series 2 s + s^3 (2/3 + 2/5 s^2 + ...); ln 2 in two parts, the first with zeros below.
  constexpr float kAtanh[] = {2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9};
  constexpr float kLn2High = 0.693145751953125f;
  constexpr float kLn2Low = 1.42860682030941723212e-6f;
  const I bits = (I)V::bits(x);
  // So that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const I exponent = (bits - (I)V::splat_u(0x3F3504F3u)) >> 23;
  const F mantissa = V::from_bits((U)bits - ((U)exponent << 23));
  const F one = V::splat_f(1.0f);
  const F s = V::div(V::sub(mantissa, one), V::add(mantissa, one));
  const F s2 = V::mul(s, s);
  const F series = V::mul(V::mul(horner<V>(s2, kAtanh), s2), s);
  const F scale = V::to_float(exponent);
  const F low = V::add(series, V::mul(scale, V::splat_f(kLn2Low)));
  return V::add(V::add(V::add(s, s), low), V::mul(scale, V::splat_f(kLn2High)));
}

// Where the central ratio of AS241 ends; beyond it lie 15 % of all words.
inline constexpr float kNormalSplit = 0.425f;

// The two ratios of AS241 PPND7 for the upper half. Source: Wichura, "Algorithm AS 241: the
// percentage points of the normal distribution", Applied Statistics 37 (1988). Its far-tail branch
// is not needed: probabilities are at least 2^-33.
template <class V>
FASTUNLEARN_HD typename V::F normal_centre(typename V::F q) {
  constexpr float kA[] = {3.3871327179e0f, 5.0434271938e1f, 1.5929113202e2f, 5.9109374720e1f};
  constexpr float kB[] = {1.0f, 1.7895169469e1f, 7.8757757664e1f, 6.7187563600e1f};
  const typename V::F r = V::sub(V::splat_f(0.180625f), V::mul(q, q));
  return V::div(V::mul(horner<V>(r, kA), q), horner<V>(r, kB));
}

template <class V>
FASTUNLEARN_HD typename V::F normal_tail(typename V::I v) {
  constexpr float kC[] = {1.4234372777e0f, 2.7568153900e0f, 1.3067284816e0f, 1.7023821103e-1f};
  constexpr float kD[] = {1.0f, 7.3700164250e-1f, 1.2021132975e-1f};
  const typename V::F p = tail_probability<V>(v, 0x1p-32f);
  const typename V::F t = V::sub(V::sqrt(-log_positive<V>(p)), V::splat_f(1.6f));
  return V::div(horner<V>(t, kC), horner<V>(t, kD));
}

// Standard normal quantile of each word; |error| < 1.7e-6. Both branches for all lanes.
template <class V>
FASTUNLEARN_HD typename V::F normal(typename V::U word) {
  const Folded<V> folded = fold<V>(word);
  const typename V::F q = to_unit<V>(folded.v, 0x1p-32f);
  const auto centre = normal_centre<V>(q);
  const auto tail = normal_tail<V>(folded.v);
  return with_sign<V>(q > V::splat_f(kNormalSplit) ? tail : centre, folded.sign);
}

// Uniform on (-sqrt(3), sqrt(3)).
template <class V>
FASTUNLEARN_HD typename V::F uniform(typename V::U word) {
  const Folded<V> folded = fold<V>(word);
  const auto q = to_unit<V>(folded.v, 0x1p-32f);
  return with_sign<V>(V::mul(q, V::splat_f(3.46410161513775458705f)), folded.sign);
}

// Laplace of unit variance: -log(2 p) / sqrt(2), with sign.
template <class V>
FASTUNLEARN_HD typename V::F laplace(typename V::U word) {
  const Folded<V> folded = fold<V>(word);
  const auto logarithm = log_positive<V>(tail_probability<V>(folded.v, 0x1p-31f));
  const auto z = V::sub(V::splat_f(0.0f), V::mul(logarithm, V::splat_f(0.70710678118654752440f)));
  return with_sign<V>(z, folded.sign);
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CORE_NOISE_H_
