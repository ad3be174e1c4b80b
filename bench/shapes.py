"Shapes that several benches measure; running it prints them."

from mypt.model.config import ModelConfig

SMOLLM2_135M = ModelConfig(
    n_layer=30,
    n_head=9,
    n_kv_head=3,
    n_embd=576,
    hidden=1536,
    block_size=512,
    vocab_size=49152,
    rope_theta=1e5,
)

if __name__ == '__main__':
    print(SMOLLM2_135M)
