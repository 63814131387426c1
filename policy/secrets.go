// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// maxSecrets bounds the secrets of one container, maxResource the path of a secret at its broker.
const (
	maxSecrets  = 64
	maxResource = 512
)

// RenewOnRequest is Secret.Renew of a file that is replaced when the container asks for it, and at no other time.
const RenewOnRequest = "on-request"

// RenewMin and RenewMax bound the interval of Secret.Renew.
const (
	RenewMin = 10 * time.Second
	RenewMax = 31 * 24 * time.Hour
)

// RenewInterval is the interval at which a secret is renewed, or 0.
func (s Secret) RenewInterval() time.Duration {
	d, err := time.ParseDuration(s.Renew)
	if err != nil { // "", or on request: the policy's own checks came before
		return 0
	}
	return d
}

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
		if s.Sealed && s.Renew != "" {
			p.add(at+".renew", "is not for a sealed text, which the host brings once")
		}
		if s.Sealed { // its place is there, and brings the text
			continue
		}
		p.secretFile(at, s, files)
		p.secretEnv(at, s, names)
		p.renew(at, s, c)
		files, names = append(files, s.File), append(names, s.Env)
	}
}

// renew checks a file that is renewed. The rename that replaces it must happen in a directory that the container sees
// as a whole, so nothing else can lie in that directory.
func (p *problems) renew(at string, s Secret, c *Container) {
	if s.Renew == "" {
		return
	}
	d, err := time.ParseDuration(s.Renew)
	if s.Renew != RenewOnRequest && (err != nil || d < RenewMin || d > RenewMax) {
		p.add(at+".renew", "%s is neither %s nor a time from %v to %v", clip(s.Renew), RenewOnRequest, RenewMin, RenewMax)
	}
	dir := path.Dir(s.File)
	if s.File == "" || dir == "/" {
		p.add(at+".renew", "is for a file in a directory below the root, not for a variable")
		return
	}
	for _, m := range c.Mounts {
		if within(path.Clean(m.Destination), dir) {
			p.add(at+".renew", "%s gets a mount of its own, and there is a mount on %s", clip(dir), clip(m.Destination))
		}
	}
	for _, o := range c.Secrets {
		if o.File != "" && within(o.File, dir) && (o.Renew == "" || path.Dir(o.File) != dir) {
			p.add(at+".renew", "%s gets a mount of its own, and %s, which is not renewed there, lies in it", clip(dir),
				clip(o.File))
		}
	}
}

// within reports whether a path is a directory or lies in it.
func within(file, dir string) bool { return strings.HasPrefix(file+"/", dir+"/") }

// secretFile checks a file. taken are the paths that something is mounted on.
func (p *problems) secretFile(at string, s Secret, taken []string) {
	if n, err := strconv.ParseUint(s.Mode, 8, 9); s.Mode != "" &&
		(s.File == "" || err != nil || strconv.FormatUint(n, 8) != s.Mode) {
		p.add(at+".mode", "%s is no mode of a file in octal digits, such as 400", clip(s.Mode))
	}
	if s.File == "" {
		return
	}
	inKernel := slices.ContainsFunc(kernelDirs, func(d string) bool { return within(s.File, d) })
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
