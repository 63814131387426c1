// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bytes"
	_ "embed" // the lock of this release
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const maxLock = 1 << 20

// Names and versions as Debian Policy 5.6.1 and 5.6.12 allow them: no option of apt, no path.
var (
	packageName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*$`)
	packageVersion = regexp.MustCompile(`^[0-9][0-9A-Za-z.+:~-]*$`)
)

// Lock pins the packages of an image: a build with the same lock, agent and options gives the same bytes.
type Lock struct {
	Suite    string    `json:"suite"`
	Kernel   string    `json:"kernel"` // the kernel package proper, not the one that points to it
	Packages []Package `json:"packages"`
}

// ReadLock decodes a lock file strictly.
func ReadLock(r io.Reader) (Lock, error) {
	var l Lock
	if err := decodeStrict(r, maxLock, &l); err != nil {
		return Lock{}, err
	}
	if l.Suite == "" || l.Kernel == "" {
		return Lock{}, errors.New("suite or kernel is missing")
	}
	for i, p := range l.Packages {
		if !packageName.MatchString(p.Name) || !packageVersion.MatchString(p.Version) || !isSHA256(p.SHA256) {
			return Lock{}, fmt.Errorf("package %d (%q): name, version or sha256 is missing or malformed", i, p.Name)
		}
	}
	if !slices.ContainsFunc(l.Packages, func(p Package) bool { return p.Name == l.Kernel }) {
		return Lock{}, fmt.Errorf("the kernel package %s is not among the packages", l.Kernel)
	}
	return l, nil
}

func (l Lock) find(name string) (Package, bool) {
	for _, p := range l.Packages {
		if p.Name == name {
			return p, true
		}
	}
	return Package{}, false
}

// releaseLock is the lock of this release, committed with it; make image-lock renews it.
//
//go:embed packages.lock.json
var releaseLock []byte

// pins returns the lock that a build obeys, or nil.
func (o Options) pins() (*Lock, error) {
	if o.RenewLock {
		return nil, nil
	}
	if !o.Locked {
		return loadLock(o.Lock, o.Suite)
	}
	l, err := ReadLock(bytes.NewReader(releaseLock))
	if err != nil {
		return nil, fmt.Errorf("the lock of this release: %w", err)
	}
	if l.Suite != o.Suite {
		return nil, fmt.Errorf("the lock of this release is for suite %s, not %s: build without --locked", l.Suite, o.Suite)
	}
	return &l, nil
}

func (o Options) lockName() string {
	if o.Locked {
		return "the lock of this release"
	}
	return "lock file " + o.Lock
}

// loadLock reads the lock file at name. No name or no file: no lock.
func loadLock(name, suite string) (*Lock, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read lock file: %w", err)
	}
	defer func() { _ = f.Close() }()
	l, err := ReadLock(f)
	if err != nil {
		return nil, fmt.Errorf("read lock file %s: %w", name, err)
	}
	if l.Suite != suite {
		return nil, fmt.Errorf("lock file %s is for suite %s, not %s: remove it, or name another with --lock", name,
			l.Suite, suite)
	}
	return &l, nil
}

func decodeStrict(r io.Reader, limit int64, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > limit {
		return fmt.Errorf("more than %d bytes", limit)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is data behind the JSON value")
	}
	return nil
}

func encodeJSON(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}

func isSHA256(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// writeAtomic makes name appear with all its content or not at all.
func writeAtomic(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", name, err), f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return f.Close()
}
