/* Every function of kernels.c on arrays of exactly the size that it may touch; compiled with sanitizers. */

#include "kernels.c"

#include <math.h>
#include <stdio.h>

static float *some(long count) {
    float *made = malloc(count * sizeof(float));
    for (long i = 0; i < count; i++) made[i] = (float)((i * 7919 + 13) % 101) / 50.0f - 1.0f;
    return made;
}

static int linear(long rows, long outputs, long inputs) {
    float *weight = some(outputs * inputs), *x = some(rows * inputs), *bias = some(outputs);
    float *packed = malloc(aisp_packed_floats(outputs, inputs) * sizeof(float)), *y = some(rows * outputs);
    int wrong = 0;
    aisp_advise(packed, 0);
    aisp_pack(weight, packed, outputs, inputs);
    wrong |= aisp_linear(x, packed, NULL, y, rows, outputs, inputs, 1);
    wrong |= aisp_linear(x, packed, bias, y, rows, outputs, inputs, 1);
    for (long r = 0; r < rows; r++)
        for (long o = 0; o < outputs; o++) {
            double sum = bias[o];
            for (long i = 0; i < inputs; i++) sum += (double)x[r * inputs + i] * weight[o * inputs + i];
            wrong |= !(fabs(sum - y[r * outputs + o]) < 1e-3);
        }
    free(weight), free(x), free(bias), free(packed), free(y);
    return wrong;
}

static int attention(Layer l, long blocks, long count, const int64_t *step, float *sinks) {
    long heads = l.heads * l.group, held = blocks * l.slots * l.heads * l.block;
    float *keys = some(held * l.key_dim), *values = some(held * l.value_dim);
    float *first = some(l.heads * count * l.key_dim), *second = some(l.heads * count * l.value_dim);
    float *query = some(l.slots * heads * l.key_dim), *out = some(l.slots * heads * l.value_dim);
    int64_t *rows = malloc(3 * sizeof(int64_t)); /* of 4: row 1 is idle */
    rows[0] = 0, rows[1] = 2, rows[2] = 3;
    long length = count + (l.window ? 5 : 0);
    Lane lanes[2] = {{first, second, count, length - count, length, 0, 2}, {first, second, count, length - count, length, 2, 1}};
    int wrong = 0;
    l.keys = keys, l.values = values;
    for (int pass = 0; pass < 2; pass++) {
        l.sinks = pass ? sinks : NULL;
        l.softcap = pass ? 3.0f : 0.0f;
        wrong |= aisp_attend(&l, lanes, 2, rows, step, query, out, 1);
        for (long i = 0; i < l.slots * heads * l.value_dim; i++) wrong |= !isfinite(out[i]);
    }
    free(keys), free(values), free(first), free(second), free(query), free(out), free(rows);
    return wrong;
}

int main(void) {
    static const long rows[] = {1, 5, 8, 33}, outputs[] = {1, 31, 64, 70}, inputs[] = {1, 24, 513, 1030};
    static const long dims[][2] = {{8, 8}, {24, 20}, {16, 5}, {64, 64}}, counts[] = {1, 11, 64, 90};
    int wrong = 0;
    for (int r = 0; r < 4; r++)
        for (int o = 0; o < 4; o++)
            for (int i = 0; i < 4; i++) wrong |= linear(rows[r], outputs[o], inputs[i]);
    for (int d = 0; d < 4; d++)
        for (int c = 0; c < 4; c++)
            for (int group = 1; group < 6; group += 2)
                for (int window = 0; window < 60; window += 30) {
                    Layer l = {.heads = 2, .group = group, .key_dim = dims[d][0], .value_dim = dims[d][1], .block = 128};
                    int64_t *step = malloc(4 * sizeof(int64_t));
                    float *sinks = some(2 * group);
                    l.slots = 4, l.window = window, l.scale = 0.3f;
                    step[0] = 0, step[1] = 255, step[2] = 128, step[3] = 255;
                    wrong |= attention(l, 2, window && counts[c] > 29 ? 29 : counts[c], step, sinks);
                    free(step), free(sinks);
                }
    puts(wrong ? "wrong" : "ok");
    return wrong;
}
