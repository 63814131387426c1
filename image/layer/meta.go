// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/coco-shim/coco/image/verity"
	"golang.org/x/sys/unix"
)

// maxMeta bounds what is read of a meta file.
const maxMeta = 64 << 10

// meta is what keys/<key>.json holds.
type meta struct {
	Identity   identity `json:"identity"`
	RootHash   string   `json:"root_hash"`
	Salt       string   `json:"salt"`
	DataBlocks uint64   `json:"data_blocks"`
	HashOffset uint64   `json:"hash_offset"`
	Size       uint64   `json:"size"`
	// BootID is the boot that built the layer. Until Durable, the layer is only believed during
	// that boot: the disk may have lost it in a crash.
	BootID  string `json:"boot_id"`
	Durable bool   `json:"durable"`
}

func decodeMeta(b []byte) (meta, verity.Params, error) {
	var m meta
	var p verity.Params
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return m, p, err
	}
	root, err := hex.DecodeString(m.RootHash)
	if err != nil || len(root) != verity.HashSize || hex.EncodeToString(root) != m.RootHash {
		return m, p, fmt.Errorf("root hash %.80q is not one", m.RootHash)
	}
	copy(p.RootHash[:], root)
	if p.Salt, err = hex.DecodeString(m.Salt); err != nil {
		return m, p, fmt.Errorf("salt: %w", err)
	}
	p.DataBlocks, p.HashOffset = m.DataBlocks, m.HashOffset
	if err := p.Validate(); err != nil {
		return m, p, err
	}
	if m.Size != p.Size() {
		return m, p, fmt.Errorf("size %d does not fit %d data blocks", m.Size, p.DataBlocks)
	}
	return m, p, nil
}

func (c *Cache) readMeta(key string) (meta, verity.Params, error) {
	f, err := os.Open(c.path(dirKeys, key+".json"))
	if err != nil {
		return meta{}, verity.Params{}, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err != nil {
		return meta{}, verity.Params{}, err
	}
	return decodeMeta(b)
}

func (c *Cache) writeMeta(key string, id identity, p verity.Params, durable bool) error {
	b, err := json.MarshalIndent(meta{
		Identity: id, RootHash: p.Hex(), Salt: hex.EncodeToString(p.Salt), DataBlocks: p.DataBlocks,
		HashOffset: p.HashOffset, Size: p.Size(), BootID: c.bootID, Durable: durable,
	}, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := c.newTemp()
	if err != nil {
		return err
	}
	defer tmp.close()
	if _, err := tmp.file.Write(append(b, '\n')); err != nil {
		return err
	}
	return tmp.rename(c.path(dirKeys, key+".json"))
}

var errNotReady = errors.New("layer must be verified first")

// lookup opens a layer that was built earlier. Any error means that there is none. When the
// caller holds the key's lock, a layer from an earlier boot is verified.
func (c *Cache) lookup(key string, id identity, locked bool) (_ *Layer, err error) {
	m, p, err := c.readMeta(key)
	if err != nil {
		return nil, err
	}
	if m.Identity != id {
		return nil, errors.New("meta is of another source")
	}
	trusted := m.Durable || m.BootID == c.bootID
	if !trusted && !locked {
		return nil, errNotReady
	}
	f, err := openShared(c.path(dirBlobs, m.RootHash))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if uint64(st.Size()) != m.Size {
		return nil, fmt.Errorf("file has %d bytes instead of %d", st.Size(), m.Size)
	}
	if err := verity.VerifyTop(f, p); err != nil {
		return nil, err
	}
	if !trusted {
		if err := verity.Verify(context.Background(), f, p); err != nil {
			return nil, err
		}
		if err := c.writeMeta(key, id, p, true); err != nil {
			return nil, err
		}
	}
	return &Layer{File: f, Params: p}, nil
}

// openShared opens a blob and locks it against Prune.
func openShared(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err == nil && st.Nlink == 0 {
		err = os.ErrNotExist // pruned in the meantime
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
