// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/internal/tpm2"
)

// Attester makes evidence of one type.
type Attester interface {
	TEE() string
	// Evidence returns the JSON of the evidence for a digest of 48 bytes.
	Evidence(ctx context.Context, digest []byte) (json.RawMessage, error)
}

// New returns the attester of a type, "snp", "tdx" or "tpm", on the machine whose root directory is given.
func New(root, tee string) (Attester, error) {
	switch tee {
	case "snp", "tdx":
		if _, err := os.Stat(filepath.Join(root, tsmReports)); err != nil {
			return nil, fmt.Errorf("no reports of %s: the kernel has no configfs-tsm: %w: %w", tee, err, errdefs.ErrNotFound)
		}
		return newTSM(root, tee), nil
	case "tpm":
	default:
		return nil, fmt.Errorf("evidence of type %q cannot be made, only snp, tdx and tpm: %w", tee,
			errdefs.ErrNotImplemented)
	}
	device := filepath.Join(root, "dev/tpm0")
	if _, err := os.Stat(device); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no TPM: %s does not exist: %w", device, errdefs.ErrNotFound)
	}
	return &TPM{Open: func() (tpm2.TPM, func() error, error) {
		t, c, err := tpm2.Open(device)
		if err != nil {
			return t, nil, err
		}
		return t, c.Close, nil
	}}, nil
}
