// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Linux' interface to the reports of TEEs (Documentation/ABI/testing/configfs-tsm-report, from 6.7 on): a directory is
// a request, its attributes are question and answer.
const (
	tsmReports = "sys/kernel/config/tsm/report"
	tsmData    = 64 // bytes of inblob
	tsmTries   = 5
	maxBlob    = 256 << 10 // report, quote or certificates
	maxLog     = 1 << 20
)

// providers are the kernel's names of the TEEs.
var providers = map[string]string{"snp": "sev_guest", "tdx": "tdx_guest"}

// TSM makes evidence of SEV-SNP or TDX through the kernel.
type TSM struct {
	root, tee    string
	open, remove func(dir string) error // of a request; replaced in tests
}

func newTSM(root, tee string) TSM {
	return TSM{root, tee, func(dir string) error { return os.Mkdir(dir, 0o700) }, os.Remove}
}

// TEE is "snp" or "tdx".
func (t TSM) TEE() string { return t.tee }

// errOther says that somebody else has written to the request meanwhile.
var errOther = errors.New("the request was changed by somebody else while it was answered")

// Evidence asks for a report with a digest in it, followed by zeros.
func (t TSM) Evidence(ctx context.Context, digest []byte) (json.RawMessage, error) {
	if len(digest) > tsmData {
		return nil, fmt.Errorf("evidence of %s takes %d bytes, not %d", t.tee, tsmData, len(digest))
	}
	data := make([]byte, tsmData)
	copy(data, digest)
	var err error
	for range tsmTries {
		var report, certs []byte
		if report, certs, err = t.ask(data); err == nil {
			return t.encode(report, certs)
		}
		if !errors.Is(err, errOther) || ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("evidence of %s: %w", t.tee, err)
}

// ask makes a request, which is removed again.
func (t TSM) ask(data []byte) (report, certs []byte, err error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, nil, err
	}
	dir := filepath.Join(t.root, tsmReports, "coco-"+hex.EncodeToString(id[:]))
	if err := t.open(dir); err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, t.remove(dir)) }()
	provider, err := read(filepath.Join(dir, "provider"), maxBlob)
	if err != nil {
		return nil, nil, err
	}
	if got := strings.TrimSpace(string(provider)); got != providers[t.tee] {
		return nil, nil, fmt.Errorf("the kernel's reports are of %q, not of %s", got, providers[t.tee])
	}
	in, err := os.OpenFile(filepath.Join(dir, "inblob"), os.O_WRONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	_, err = in.Write(data)
	if err = errors.Join(err, in.Close()); err != nil {
		return nil, nil, err
	}
	if report, err = read(filepath.Join(dir, "outblob"), maxBlob); err != nil {
		return nil, nil, err
	}
	if certs, err = read(filepath.Join(dir, "auxblob"), maxBlob); errors.Is(err, fs.ErrNotExist) {
		certs, err = nil, nil // a platform without certificates
	}
	if err != nil {
		return nil, nil, err
	}
	// Each write counts one generation. After our only one, any other number is somebody else's.
	generation, err := read(filepath.Join(dir, "generation"), maxBlob)
	if err == nil && strings.TrimSpace(string(generation)) != "1" {
		err = errOther
	}
	return report, certs, err
}

// encode writes CoCo's JSON.
func (t TSM) encode(report, certs []byte) (json.RawMessage, error) {
	if t.tee == "snp" {
		return encodeSNP(report, certs)
	}
	// The firmware's event log lies in memory that an ACPI table names; the kernel shows it as a table's data.
	log, err := read(filepath.Join(t.root, "sys/firmware/acpi/tables/data/CCEL"), maxLog)
	if errors.Is(err, fs.ErrNotExist) {
		log, err = nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	return json.Marshal(struct {
		Quote []byte `json:"quote"`
		Log   []byte `json:"cc_eventlog"`
	}{report, log})
}

// read reads a file of bounded length. The kernel's attributes have no size.
func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}
