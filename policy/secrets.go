// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxSecrets bounds the secrets of one container, maxResource the path of a secret at its broker.
const (
	maxSecrets  = 64
	maxResource = 512
)

// kernelDirs are where a secret's file cannot be: the runtime mounts the kernel's own file systems there.
var kernelDirs = []string{"/proc", "/sys", "/dev"}

func (p *problems) secrets(at string, c *Container) {
	if len(c.Secrets) > maxSecrets {
		p.add(at, "has %d, at most %d are fetched", len(c.Secrets), maxSecrets)
	}
	var files, names []string
	for _, m := range c.Mounts {
		files = append(files, m.Destination)
	}
	for _, e := range c.Process.Env {
		names = append(names, e.Name)
	}
	for i, s := range c.Secrets {
		at := at + "[" + strconv.Itoa(i) + "]"
		if !isResource(s.Resource) {
			p.add(at+".resource", "%s is no URI such as kbs:///repository/type/tag", clip(s.Resource))
		}
		if (s.File == "") == (s.Env == "") {
			p.add(at, "has both or none of file and env, and one of them has to be there")
		}
		if s.Sealed { // its place is there, and brings the text
			continue
		}
		p.secretFile(at, s, files)
		p.secretEnv(at, s, names)
		files, names = append(files, s.File), append(names, s.Env)
	}
}

// secretFile checks a file. taken are the paths that something is mounted on.
func (p *problems) secretFile(at string, s Secret, taken []string) {
	if n, err := strconv.ParseUint(s.Mode, 8, 9); s.Mode != "" &&
		(s.File == "" || err != nil || strconv.FormatUint(n, 8) != s.Mode) {
		p.add(at+".mode", "%s is no mode of a file in octal digits, such as 400", clip(s.Mode))
	}
	if s.File == "" {
		return
	}
	inKernel := slices.ContainsFunc(kernelDirs, func(d string) bool { return strings.HasPrefix(s.File+"/", d+"/") })
	switch {
	case !path.IsAbs(s.File) || path.Clean(s.File) != s.File || s.File == "/" || strings.ContainsRune(s.File, 0) ||
		!utf8.ValidString(s.File):
		p.add(at+".file", "%s is no absolute path in its shortest form", clip(s.File))
	case inKernel:
		p.add(at+".file", "%s lies in %s, which are the kernel's", clip(s.File), strings.Join(kernelDirs, ", "))
	case slices.Contains(taken, s.File):
		p.add(at+".file", "%s is a mount or another secret already", clip(s.File))
	}
}

// secretEnv checks a variable. taken are the names that there are.
func (p *problems) secretEnv(at string, s Secret, taken []string) {
	switch {
	case s.Env == "":
	case strings.ContainsAny(s.Env, "=\x00") || !utf8.ValidString(s.Env):
		p.add(at+".env", "%s is no name of a variable", clip(s.Env))
	case literalOnly(s.Env):
		p.add(at+".env", "%s decides which code runs, and takes no secret", clip(s.Env))
	case slices.Contains(taken, s.Env):
		p.add(at+".env", "%s is a variable of the process or another secret already", clip(s.Env))
	}
}

// isResource reports whether s is the URI of a secret, of three segments (CoCo's KBS protocol), without an address.
func isResource(s string) bool {
	rest, ok := strings.CutPrefix(s, "kbs:///")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 3 || len(rest) > maxResource {
		return false
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	for _, p := range parts {
		if p == "" || p[0] == '.' || strings.Trim(p, letters+".") != "" {
			return false
		}
	}
	return true
}
