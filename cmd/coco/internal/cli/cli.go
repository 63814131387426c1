// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cli has functions that commands of coco share: for files, input, flags and the exit status.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// Failure is an error with an exit status of its own.
type Failure struct {
	Err  error
	Code int
}

// Error returns the error's text.
func (f Failure) Error() string { return f.Err.Error() }

// Unwrap returns the error.
func (f Failure) Unwrap() error { return f.Err }

// ExitCode returns the exit status.
func (f Failure) ExitCode() int { return f.Code }

// ReadFile reads a file of at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return read(f, path, limit)
}

// Input reads a file, or stdin for "-", of at most limit bytes.
func Input(cmd *cobra.Command, path string, limit int64) ([]byte, error) {
	if path == "-" {
		return read(cmd.InOrStdin(), "stdin", limit)
	}
	return ReadFile(path, limit)
}

func read(r io.Reader, name string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b, nil
}

// Require makes flags of a command required. It panics where the command has no flag of that name.
func Require(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}

// WriteSecret makes a file that only its owner may read. A file that exists is replaced, never written into.
func WriteSecret(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".coco-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// WriteKeyPair writes two new files, of which only the owner may read the private one, and prints their names. A file
// that exists is left as it is: a key is not overwritten. After an error no file is left of this call.
func WriteKeyPair(cmd *cobra.Command, private string, key []byte, public string, pub []byte) error {
	if err := writeNew(private, key, 0o600); err != nil {
		return err
	}
	if err := writeNew(public, pub, 0o644); err != nil {
		return errors.Join(err, os.Remove(private))
	}
	cmd.Printf("%s and %s\n", private, public)
	return nil
}

// writeNew writes a file that does not exist yet. After an error there is none of this call.
func writeNew(path string, b []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists: a key is not overwritten", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
