/* The compiled form from an installed package: equal keys have equal weights, so each row is the mean of the
 * values. */
#include <fastrope/fastrope.h>
#include <stdio.h>

int main(void) {
  enum { n = 5, d = 2 };
  float q[n * d], k[n * d], v[n * d], out[n * d];
  for (int i = 0; i < n * d; ++i) {
    q[i] = 0.5f;
    k[i] = 0.25f;
    v[i] = (float)(i / d);
  }
  fastrope_tensor x = {q, FASTROPE_F32, 1, n, d, n * d, d, NULL, 0, 0, 0, NULL, 0, 0, NULL, 0};
  fastrope_tensor keys = x, values = x, result = x;
  keys.data = k;
  values.data = v;
  result.data = out;
  if (fastrope_attend(&x, &keys, &values, &result, NULL, NULL) != FASTROPE_OK) {
    fprintf(stderr, "%s\n", fastrope_last_error());
    return 1;
  }
  for (int i = 0; i < n * d; ++i)
    if (!(out[i] > 1.99999f && out[i] < 2.00001f)) return 1;
  printf("fastrope %s\n", fastrope_version());
  return 0;
}
