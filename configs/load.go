// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coco-shim/coco/internal/initdata"
)

// EnvFile is the environment variable that names the configuration file.
const EnvFile = "COCO_CONF_FILE"

// systemFile is the administrator's configuration.
const systemFile = "/etc/coco/config.toml"

// dropInDir is the directory beside a configuration file whose *.toml are merged on top of it.
const dropInDir = "config.d"

// Load reads the configuration. path is the file that the client named (runtime option ConfigPath);
// "" searches: $COCO_CONF_FILE, /etc/coco/config.toml, PREFIX/share/coco/config.toml. A file that was
// named must exist; when the search finds none, the defaults apply. Drop-ins config.d/*.toml beside the
// file are merged on top in the order of their names.
func Load(path string) (Config, error) {
	if path == "" {
		path = os.Getenv(EnvFile)
	}
	if path != "" {
		return loadFile(path)
	}
	for _, p := range searchPath() {
		_, err := os.Stat(p)
		if err == nil {
			return loadFile(p)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return Config{}, fmt.Errorf("look for configuration: %w", err)
		}
	}
	return merge(nil)
}

// searchPath lists the places of a configuration file that nobody named.
func searchPath() []string {
	paths := []string{systemFile}
	for _, d := range shareDirs() {
		paths = append(paths, filepath.Join(d, "config.toml"))
	}
	return paths
}

func loadFile(path string) (Config, error) {
	if !filepath.IsAbs(path) {
		return Config{}, Problems{{File: path, What: "the configuration file's path is relative", Expect: "an absolute path"}}
	}
	files := []string{path}
	drop, err := filepath.Glob(filepath.Join(globEscape(filepath.Dir(path)), dropInDir, "*.toml"))
	if err != nil {
		return Config{}, fmt.Errorf("list drop-ins of %s: %w", path, err)
	}
	files = append(files, drop...) // Glob sorts

	var sources []source
	var problems Problems
	for _, f := range files {
		text, err := readFile(f, maxFile)
		if err != nil {
			problems = append(problems, fileProblem(f, err))
			continue
		}
		sources = append(sources, source{f, text})
	}
	cfg, err := merge(sources)
	if err == nil && len(problems) == 0 {
		return cfg, nil
	}
	var more Problems
	errors.As(err, &more)
	return Config{}, append(problems, more...)
}

func fileProblem(file string, err error) Problem {
	if errors.Is(err, fs.ErrNotExist) {
		return Problem{
			File: file, What: "the configuration file does not exist",
			Expect: "a readable TOML file (an example is configs/config-qemu.toml)",
		}
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return Problem{
		File: file, What: "the configuration file cannot be read: " + err.Error(),
		Expect: "a readable TOML file",
	}
}

// ReadInitdata reads the file that hypervisor.initdata names.
func ReadInitdata(path string) ([]byte, error) { return readFile(path, initdata.MaxText) }

// readFile reads a regular file. Of one that is longer than limit it reads one byte more than that, by which its parser
// knows.
func readFile(path string, limit int64) (text []byte, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("is a %s, not a regular file", kind(st.Mode()))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// globEscape quotes what Glob would expand.
func globEscape(s string) string {
	var out []rune
	for _, r := range s {
		switch r {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}
