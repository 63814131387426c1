// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/coco-shim/coco/image/layer"
)

// Cache is a directory with the results of images whose layers were read before; "" keeps nothing. Its files are
// believed: nobody else may write to the directory.
type Cache string

// cacheKey is a name for the layers of an image in one version of their format, and for its volumes.
func cacheKey(diffs []v1.Hash, volumes []string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n", layer.FormatVersion)
	for _, d := range diffs {
		fmt.Fprintln(h, d)
	}
	for _, v := range volumes {
		fmt.Fprintf(h, "%q\n", v)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (c Cache) path(key string) string { return filepath.Join(string(c), key+".json") }

// load returns what was kept. A file that cannot be read counts as none: it is made anew.
func (c Cache) load(key string) (out content, ok bool) {
	if c == "" {
		return content{}, false
	}
	b, err := os.ReadFile(c.path(key))
	if err != nil || json.Unmarshal(b, &out) != nil || len(out.Layers) == 0 {
		return content{}, false
	}
	return out, true
}

func (c Cache) store(key string, v content) (err error) {
	if c == "" {
		return nil
	}
	if err := os.MkdirAll(string(c), 0o700); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	b, err := json.Marshal(v) //nolint:gosec // /etc/passwd of an image holds no secrets
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(string(c), "tmp-")
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cache: %w", err), os.Remove(tmp.Name()))
		}
	}()
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), c.path(key))
}
