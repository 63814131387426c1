// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
)

const maxDebFile = 512 << 20

// tarFile is a regular file or symbolic link of a package.
type tarFile struct {
	path   string // without a leading slash
	mode   uint32
	data   []byte
	target string // of a symbolic link
	origin string
}

// unpackDeb returns the files and links of a Debian package for which keep says yes. Nothing is
// written to disk.
func unpackDeb(ctx context.Context, deb string, p Package, keep func(name string) bool) (_ []tarFile, err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", deb, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w (coco guest build needs dpkg-deb, package dpkg)", deb, err)
	}
	files, err := readTar(out, keep)
	if err == nil { // dpkg-deb must see its output read to the end
		_, err = io.Copy(io.Discard, out)
	} else {
		_ = cmd.Process.Kill()
	}
	if werr := cmd.Wait(); werr != nil && err == nil {
		err = fmt.Errorf("%w: %s", werr, strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", deb, err)
	}
	for i := range files {
		files[i].origin = p.String()
	}
	return files, nil
}

func readTar(r io.Reader, keep func(string) bool) ([]tarFile, error) {
	var files []tarFile
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" || !keep(name) {
			continue
		}
		f := tarFile{path: name, mode: uint32(h.Mode) & 0o777} //nolint:gosec // nine bits
		switch h.Typeflag {
		case tar.TypeReg:
			if h.Size > maxDebFile {
				return nil, fmt.Errorf("%s: %d bytes, more than %d", name, h.Size, maxDebFile)
			}
			if f.data, err = io.ReadAll(tr); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		case tar.TypeSymlink:
			f.target = h.Linkname
		default:
			continue
		}
		files = append(files, f)
	}
}

// debDepends returns the names of the packages that deb depends on; of alternatives the first.
func debDepends(ctx context.Context, deb string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "dpkg-deb", "-f", deb, "Depends").Output()
	if err != nil {
		return nil, fmt.Errorf("read the dependencies of %s: %w", deb, withStderr(err))
	}
	return dependNames(string(out)), nil
}

// dependNames parses a Depends field ("libc6 (>= 2.38), kmod, a | b").
func dependNames(field string) []string {
	var names []string
	for dep := range strings.SplitSeq(field, ",") {
		dep, _, _ = strings.Cut(dep, "|")
		dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
		dep, _, _ = strings.Cut(dep, ":") // an architecture qualifier
		if dep != "" {
			names = append(names, dep)
		}
	}
	return names
}

// withStderr adds what a command said before it failed.
func withStderr(err error) error {
	var ee *exec.ExitError
	if errors.As(err, &ee) && len(ee.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, lastLines(ee.Stderr, 4))
	}
	return err
}

func lastLines(b []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
