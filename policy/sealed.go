// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/base64"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Sealed has the signers of the sealed secrets that the guest opens. The zero value opens none.
type Sealed struct {
	Signers []Signer `json:"signers,omitempty"`
	// InsecureUnsigned accepts texts without a signature. The host can then write them itself: a vault of the
	// resource that the place allows, and an envelope if it knows that resource.
	InsecureUnsigned bool `json:"insecureUnsigned,omitempty"`
}

// Signer is a key whose signatures are accepted: an ES256 key of P-256.
type Signer struct {
	// Kid is how sealed texts name the key: the resource of the key broker that has it, kbs:///repository/type/tag, or any
	// other text. The key then stands in X and Y.
	Kid string `json:"kid"`
	// X and Y are the coordinates of the public key as in its JWK: 32 bytes each in base64url without padding.
	X string `json:"x,omitempty"`
	Y string `json:"y,omitempty"`
}

const (
	maxSigners    = 16
	maxKid        = 512
	maxSealed     = 1 << 20 // bytes of a sealed text, as in package attestation/sealed
	brokerScheme  = "kbs:"
	sealedPrefix  = "sealed."
	sealedLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
)

// isSealed reports whether s has the form of a sealed text: sealed.HEADER.PAYLOAD.SIGNATURE, where PAYLOAD is base64url
// of an object of JSON. Opening it judges the content.
func isSealed(s string) bool {
	rest, ok := strings.CutPrefix(s, sealedPrefix)
	parts := strings.Split(rest, ".")
	if !ok || len(s) > maxSealed || len(parts) != 3 {
		return false
	}
	for _, part := range parts {
		if part == "" || strings.Trim(part, sealedLetters) != "" {
			return false
		}
	}
	object := parts[1] // "{" is base64 of "e" and one of w, x, y, z
	return len(object) > 2 && object[0] == 'e' && object[1] >= 'w' && object[1] <= 'z'
}

// HasSealed reports whether a container of the policy has sealed secrets.
func (p *Policy) HasSealed() bool {
	for i := range p.Containers {
		for _, s := range p.Containers[i].Secrets {
			if s.Sealed {
				return true
			}
		}
	}
	return false
}

// sealedProblems are those of sealed secrets and their signers.
func (p *Policy) sealedProblems() (out problems) {
	out.signers(p)
	for i := range p.Containers {
		c := &p.Containers[i]
		var opened []string
		for j, s := range c.Secrets {
			if s.Sealed {
				out.sealed("containers["+strconv.Itoa(i)+"].secrets["+strconv.Itoa(j)+"]", s, p, c, opened)
				opened = append(opened, s.File, s.Env)
			}
		}
		out.unopened("containers["+strconv.Itoa(i)+"]", c, opened)
	}
	return out
}

// signers checks pod.sealed.signers.
func (p *problems) signers(of *Policy) {
	list := of.Pod.Sealed.Signers
	if len(list) > maxSigners {
		p.add("pod.sealed.signers", "has %d, at most %d are known", len(list), maxSigners)
	}
	var kids []string
	for i, s := range list {
		at := "pod.sealed.signers[" + strconv.Itoa(i) + "]"
		kids = append(kids, s.Kid)
		broker := strings.HasPrefix(s.Kid, brokerScheme)
		switch {
		case s.Kid == "" || len(s.Kid) > maxKid || !isText(s.Kid):
			p.add(at+".kid", "%s is empty, too long or has control characters", clip(s.Kid))
		case broker && !isResource(s.Kid):
			p.add(at+".kid", "%s is no URI such as kbs:///repository/type/tag", clip(s.Kid))
		case broker && s.X+s.Y != "":
			p.add(at, "has a key, which the key broker has, as its kid says")
		case !broker && (!isCoordinate(s.X) || !isCoordinate(s.Y)):
			p.add(at, "has no x and y of 32 bytes in base64url, and its kid is no resource of the key broker")
		}
	}
	p.once("pod.sealed.signers", kids)
	if of.HasSealed() && len(list) == 0 && !of.Pod.Sealed.InsecureUnsigned {
		p.add("pod.sealed.signers", "is empty, so no sealed secret of the containers could be opened")
	}
}

func isCoordinate(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == 32
}

// sealed checks a secret whose text the host brings. opened are the files and variables of those before it.
func (p *problems) sealed(at string, s Secret, of *Policy, c *Container, opened []string) {
	if s.Mode != "" {
		p.add(at+".mode", "is for files that the agent makes; the file with the sealed text has its own mode")
	}
	if slices.Contains(opened, s.File+s.Env) {
		p.add(at, "opens %s a second time", clip(s.File+s.Env))
	}
	if s.Env != "" {
		i := slices.IndexFunc(c.Process.Env, func(e Env) bool { return e.Name == s.Env })
		if i < 0 || !c.Process.Env[i].mayBeSealed() {
			p.add(at+".env", "%s is no variable in process.env of type %q, or with a sealed text", clip(s.Env), TypeSealed)
		}
	}
	if s.File != "" && (!path.IsAbs(s.File) || path.Clean(s.File) != s.File || strings.ContainsRune(s.File, 0) ||
		!copied(of, c, s.File)) {
		p.add(at+".file", "%s is no absolute path in its shortest form within a copied mount of the container", clip(s.File))
	}
}

// mayBeSealed reports whether all values that a variable may have are sealed texts.
func (v Value) mayBeSealed() bool {
	return v.Type == TypeSealed || v.Is != nil && isSealed(*v.Is) ||
		len(v.OneOf) > 0 && !slices.ContainsFunc(v.OneOf, func(s string) bool { return !isSealed(s) })
}

// copied reports whether a file lies in a mount of a container whose source the host copies, and in no other mount
// that is nearer to it.
func copied(of *Policy, c *Container, file string) bool {
	var source Source
	length := 0
	for i := range c.Mounts {
		at := path.Clean(c.Mounts[i].Destination)
		if (file == at || strings.HasPrefix(file, at+"/")) && len(at) >= length {
			source, length = c.Mounts[i].Source, len(at)
		}
	}
	return source.Copy != nil || source.Volume != nil && slices.ContainsFunc(of.Volumes, func(v Volume) bool {
		return v.Name == source.Volume.Name && v.Kind == VolumeCopy
	})
}

// unopened refuses variables that can only be sealed texts and that no entry of the secrets opens: the process would
// get the text.
func (p *problems) unopened(at string, c *Container, opened []string) {
	for i, e := range c.Process.Env {
		if e.mayBeSealed() && !slices.Contains(opened, e.Name) {
			p.add(at+".process.env["+strconv.Itoa(i)+"]", "%s is a sealed text, and no entry of secrets with sealed opens it",
				clip(e.Name))
		}
	}
}
