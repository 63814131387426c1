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

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/image/verity"
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
	// Blob tells whether somebody has written to the file since.
	Blob blobState `json:"blob"`
}

// blobState is a file's inode and change time.
type blobState [3]int64

func stateOf(f *os.File) (blobState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return blobState{}, os.NewSyscallError("fstat", err)
	}
	return blobState{int64(st.Ino), st.Ctim.Sec, st.Ctim.Nsec}, nil //nolint:gosec // only compared
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

// writeMeta makes the layer in f, which has its final name, known under a key.
func (c *Cache) writeMeta(key string, id identity, f *os.File, p verity.Params, durable bool) error {
	state, err := stateOf(f)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(meta{
		Identity: id, RootHash: p.Hex(), Salt: hex.EncodeToString(p.Salt), DataBlocks: p.DataBlocks,
		HashOffset: p.HashOffset, Size: p.Size(), BootID: c.bootID, Durable: durable, Blob: state,
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

// lookup opens a layer that was built earlier. When the caller holds the key's lock, a layer is verified
// in full if there is a reason to doubt it. A *ModifiedError means that somebody has changed it; any
// other error, that there is none.
func (c *Cache) lookup(ctx context.Context, key string, id identity, locked bool) (_ *Layer, err error) {
	m, p, err := c.readMeta(key)
	if err != nil {
		return nil, err
	}
	if m.Identity != id {
		return nil, errors.New("meta is of another source")
	}
	f, err := openShared(c.path(dirBlobs, m.RootHash))
	if err != nil {
		return nil, err
	}
	if err := c.check(ctx, key, m, p, f, locked); err != nil {
		f.Close()
		return nil, err
	}
	c.used(key)
	return &Layer{File: f, Params: p}, nil
}

// check decides whether an opened blob is the layer that its metadata describes.
func (c *Cache) check(ctx context.Context, key string, m meta, p verity.Params, f *os.File, locked bool) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if uint64(st.Size()) != m.Size { //nolint:gosec // of a file
		return fmt.Errorf("file has %d bytes instead of %d", st.Size(), m.Size)
	}
	state, err := stateOf(f)
	if err != nil {
		return err
	}
	kept := m.Durable || m.BootID == c.bootID
	if kept && state == m.Blob {
		return verity.VerifyTop(f, p)
	}
	if !locked {
		return errNotReady
	}
	var corrupt *verity.CorruptError
	err = verity.Verify(ctx, f, p)
	if errors.As(err, &corrupt) && kept {
		return &ModifiedError{Path: c.path(dirBlobs, m.RootHash), Err: err}
	}
	if err != nil {
		return err
	}
	return c.writeMeta(key, m.Identity, f, p, m.BootID != c.bootID || m.Durable)
}

// ModifiedError says that a file of the cache is not what the cache has put there.
type ModifiedError struct {
	Path string
	Err  error
}

func (e *ModifiedError) Error() string {
	return fmt.Sprintf("%v: somebody has changed %s, or the disk is bad; remove this file, and the layer is built again",
		e.Err, e.Path)
}

func (e *ModifiedError) Unwrap() error { return e.Err }

// openShared opens a blob and locks it against Prune.
func openShared(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = flock(f, unix.LOCK_SH) // who has it alone looks or removes, both at once
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
