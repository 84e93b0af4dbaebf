// This file answers: are the documents the server signs right, and does it
// refuse to sign what it must not?
package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// lifetime demands that a document is valid now and for about ttl.
func lifetime(c *check, notBefore, notAfter time.Time, ttl time.Duration) {
	now := time.Now()
	c.that(!notBefore.After(now), "not valid before %s, it is %s", notBefore, now)
	left := notAfter.Sub(now)
	c.that(left > ttl-15*time.Second && left <= ttl+time.Second, "%s left, expected %s", left, ttl)
}

// forge breaks the signature of a certificate request.
func forge(csr []byte) []byte {
	forged := slices.Clone(csr)
	forged[len(forged)-1] ^= 1
	return forged
}

// jwtBundle fetches the JWT authorities as the server shows them.
func (s *suite) jwtBundle(c *check) *jwtbundle.Bundle {
	bundle, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
	c.ok(err, "get bundle")
	authorities := map[string]crypto.PublicKey{}
	for _, authority := range bundle.GetJwtAuthorities() {
		key, err := x509.ParsePKIXPublicKey(authority.GetPublicKey())
		c.ok(err, "parse JWT authority")
		authorities[authority.GetKeyId()] = key
	}
	return jwtbundle.FromJWTAuthorities(s.server.domain, authorities)
}

// judgeJWT validates a token and what it is announced with, and returns its claims.
func (s *suite) judgeJWT(c *check, issued *types.JWTSVID, id string, audience []string, ttl time.Duration) map[string]any {
	bundle := s.jwtBundle(c)
	for _, one := range audience {
		_, err := jwtsvid.ParseAndValidate(issued.GetToken(), bundle, []string{one})
		c.ok(err, "validate JWT-SVID for "+one)
	}
	svid, err := jwtsvid.ParseAndValidate(issued.GetToken(), bundle, audience)
	c.ok(err, "validate JWT-SVID")
	equal(c, "subject", svid.ID.String(), id)
	equal(c, "announced SPIFFE ID", idString(issued.GetId()), id)
	equal(c, "audience", fmt.Sprint(svid.Audience), fmt.Sprint(audience))
	equal(c, "announced expiry", issued.GetExpiresAt(), svid.Expiry.Unix())
	lifetime(c, time.Unix(issued.GetIssuedAt(), 0), svid.Expiry, ttl)
	_, err = jwtsvid.ParseAndValidate(issued.GetToken(), bundle, []string{"somebody-else"})
	c.that(err != nil, "the JWT-SVID is valid for somebody else")

	token, err := jwt.ParseSigned(issued.GetToken(), []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512})
	c.ok(err, "parse JWT-SVID")
	if typ, ok := token.Headers[0].ExtraHeaders[jose.HeaderType]; ok {
		c.that(typ == "JWT" || typ == "JOSE", "the token's type is %v", typ)
	}
	equal(c, "issue time", fmt.Sprint(svid.Claims["iat"]), fmt.Sprint(float64(issued.GetIssuedAt())))
	return svid.Claims
}

func (s *suite) mintChecks(ctx context.Context) {
	request := func(c *check, key crypto.Signer, dnsNames []string, uris ...string) []byte {
		template := &x509.CertificateRequest{DNSNames: dnsNames}
		for _, text := range uris {
			uri, err := url.Parse(text)
			c.ok(err, "parse URI")
			template.URIs = append(template.URIs, uri)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
		c.ok(err, "make certificate request")
		return csr
	}
	s.check(ctx, "mint-x509-svid", func(c *check) {
		key := mustKey(c)
		id := s.path("minted").String()
		response, err := s.admin.svids.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: request(c, key, []string{"minted.example.org"}, id), Ttl: 300})
		c.ok(err, "mint")
		svid, err := s.server.accept(response.GetSvid(), key)
		c.ok(err, "judge the SVID")
		equal(c, "ID", svid.ID.String(), id)
		equal(c, "DNS names", fmt.Sprint(svid.Certificates[0].DNSNames), "[minted.example.org]")
		judgeUsage(c, svid)
		lifetime(c, svid.Certificates[0].NotBefore, svid.Certificates[0].NotAfter, 300*time.Second)
	})
	s.check(ctx, "mint-x509-svid-refuses-bad-requests", func(c *check) {
		key := mustKey(c)
		id := s.path("minted").String()
		for _, t := range []struct {
			name string
			csr  []byte
		}{
			{"no request", nil},
			{"a malformed request", []byte("not a certificate request")},
			{"a forged signature", forge(request(c, key, nil, id))},
			{"no URI", request(c, key, nil)},
			{"two URIs", request(c, key, nil, id, id+"-2")},
			{"a URI of another kind", request(c, key, nil, "https://example.org/x")},
			{"another trust domain", request(c, key, nil, "spiffe://other.test/x")},
			{"no path", request(c, key, nil, "spiffe://"+s.server.domain.Name())},
		} {
			_, err := s.admin.svids.MintX509SVID(c.ctx, &svidv1.MintX509SVIDRequest{Csr: t.csr})
			c.code(err, codes.InvalidArgument, "mint with "+t.name)
		}
	})
	s.check(ctx, "mint-jwt-svid", func(c *check) {
		id := s.path("minted")
		response, err := s.admin.svids.MintJWTSVID(c.ctx, &svidv1.MintJWTSVIDRequest{Id: protoID(id), Audience: []string{"one", "two"}, Ttl: 60})
		c.ok(err, "mint")
		s.judgeJWT(c, response.GetSvid(), id.String(), []string{"one", "two"}, time.Minute)
	})
	s.check(ctx, "mint-jwt-svid-refuses-bad-requests", func(c *check) {
		for _, t := range []struct {
			name     string
			id       *types.SPIFFEID
			audience []string
		}{
			{"no audience", protoID(s.path("minted")), nil},
			{"no ID", nil, []string{"one"}},
			{"another trust domain", &types.SPIFFEID{TrustDomain: "other.test", Path: "/x"}, []string{"one"}},
			{"no path", &types.SPIFFEID{TrustDomain: s.server.domain.Name()}, []string{"one"}},
			{"a malformed path", &types.SPIFFEID{TrustDomain: s.server.domain.Name(), Path: "/a//b"}, []string{"one"}},
		} {
			_, err := s.admin.svids.MintJWTSVID(c.ctx, &svidv1.MintJWTSVIDRequest{Id: t.id, Audience: t.audience})
			c.code(err, codes.InvalidArgument, "mint with "+t.name)
		}
	})
}

func judgeUsage(c *check, svid *x509svid.SVID) {
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		c.that(slices.Contains(svid.Certificates[0].ExtKeyUsage, usage), "extended key usage %v is missing", usage)
	}
}

func (s *suite) issueChecks(ctx context.Context) {
	s.check(ctx, "new-x509-svids-answer-by-position", func(c *check) {
		needs(c, s.web)
		key := mustKey(c)
		csr, err := newCSR(key)
		c.ok(err, "make certificate request")
		elsewhere, err := newCSR(key, "spiffe://"+s.server.domain.Name()+"/somebody-else")
		c.ok(err, "make certificate request")
		items := []struct {
			params *svidv1.NewX509SVIDParams
			want   codes.Code
			id     string
		}{
			{&svidv1.NewX509SVIDParams{EntryId: s.web.GetId(), Csr: csr}, codes.OK, "web"},
			{&svidv1.NewX509SVIDParams{EntryId: s.web.GetId()}, codes.InvalidArgument, ""},
			{&svidv1.NewX509SVIDParams{Csr: csr}, codes.InvalidArgument, ""},
			{&svidv1.NewX509SVIDParams{EntryId: "never-" + s.mark, Csr: csr}, codes.NotFound, ""},
			{&svidv1.NewX509SVIDParams{EntryId: s.foreign.GetId(), Csr: csr}, codes.NotFound, ""},
			{&svidv1.NewX509SVIDParams{EntryId: s.web.GetId(), Csr: []byte("not a certificate request")}, codes.InvalidArgument, ""},
			{&svidv1.NewX509SVIDParams{EntryId: s.web.GetId(), Csr: forge(csr)}, codes.InvalidArgument, ""},
			{&svidv1.NewX509SVIDParams{EntryId: s.tokens.GetId(), Csr: csr}, codes.OK, "tokens"},
			{&svidv1.NewX509SVIDParams{EntryId: s.web.GetId(), Csr: elsewhere}, codes.OK, "web"},
		}
		// A request that names another SPIFFE ID is refused, or answered with the entry's own; never with that name.
		named := len(items) - 1
		request := &svidv1.BatchNewX509SVIDRequest{}
		for _, item := range items {
			request.Params = append(request.Params, item.params)
		}
		response, err := s.node.svids.BatchNewX509SVID(c.ctx, request)
		c.ok(err, "new SVIDs")
		equal(c, "results", len(response.GetResults()), len(items))
		serials, issued := map[string]bool{}, 0
		for i, result := range response.GetResults() {
			what := fmt.Sprintf("item %d", i)
			if i == named && codes.Code(result.GetStatus().GetCode()) == codes.InvalidArgument {
				c.that(result.GetSvid() == nil, "%s carries an SVID", what)
				continue
			}
			c.status(result.GetStatus(), items[i].want, what)
			if items[i].want != codes.OK {
				c.that(result.GetSvid() == nil, "%s carries an SVID", what)
				continue
			}
			svid, err := s.server.accept(result.GetSvid(), key)
			c.ok(err, "judge "+what)
			equal(c, "ID of "+what, svid.ID.String(), s.path(items[i].id).String())
			judgeUsage(c, svid)
			leaf := svid.Certificates[0]
			serials[leaf.SerialNumber.String()] = true
			issued++
			if items[i].id == "web" {
				equal(c, "DNS names of "+what, fmt.Sprint(leaf.DNSNames), "[web.example.org]")
				lifetime(c, leaf.NotBefore, leaf.NotAfter, 600*time.Second)
			}
		}
		equal(c, "distinct serial numbers", len(serials), issued)
	})
	s.check(ctx, "new-x509-svids-refuses-an-empty-batch", func(c *check) {
		needs(c, s.node)
		_, err := s.node.svids.BatchNewX509SVID(c.ctx, &svidv1.BatchNewX509SVIDRequest{})
		c.code(err, codes.InvalidArgument, "new SVIDs")
	})
	s.check(ctx, "new-x509-svids-takes-a-large-batch", func(c *check) {
		needs(c, s.web)
		key := mustKey(c)
		csr, err := newCSR(key)
		c.ok(err, "make certificate request")
		request := &svidv1.BatchNewX509SVIDRequest{}
		const large = 200
		for range large {
			request.Params = append(request.Params, &svidv1.NewX509SVIDParams{EntryId: s.web.GetId(), Csr: csr})
		}
		response, err := s.node.svids.BatchNewX509SVID(c.ctx, request)
		c.ok(err, "new SVIDs")
		equal(c, "results", len(response.GetResults()), large)
		for i, result := range response.GetResults() {
			c.status(result.GetStatus(), codes.OK, fmt.Sprintf("item %d", i))
		}
	})
	s.check(ctx, "new-jwt-svid", func(c *check) {
		needs(c, s.web)
		response, err := s.node.svids.NewJWTSVID(c.ctx, &svidv1.NewJWTSVIDRequest{EntryId: s.web.GetId(), Audience: []string{"one", "two"}})
		c.ok(err, "new JWT-SVID")
		s.judgeJWT(c, response.GetSvid(), s.path("web").String(), []string{"one", "two"}, 120*time.Second)
	})
	s.check(ctx, "new-jwt-svid-with-jti", func(c *check) {
		needs(c, s.tokens)
		seen := map[string]bool{}
		for range 2 {
			response, err := s.node.svids.NewJWTSVID(c.ctx, &svidv1.NewJWTSVIDRequest{EntryId: s.tokens.GetId(), Audience: []string{"one"}})
			c.ok(err, "new JWT-SVID")
			token, err := jwtsvid.ParseAndValidate(response.GetSvid().GetToken(), s.jwtBundle(c), []string{"one"})
			c.ok(err, "validate JWT-SVID")
			jti, _ := token.Claims["jti"].(string)
			c.that(jti != "", "the token has no jti")
			seen[jti] = true
		}
		equal(c, "distinct jti", len(seen), 2)
	})
	s.check(ctx, "new-jwt-svid-refuses-bad-requests", func(c *check) {
		needs(c, s.web)
		_, err := s.node.svids.NewJWTSVID(c.ctx, &svidv1.NewJWTSVIDRequest{EntryId: s.web.GetId()})
		c.code(err, codes.InvalidArgument, "without audience")
		for _, id := range []string{"", "never-" + s.mark, s.foreign.GetId()} {
			_, err := s.node.svids.NewJWTSVID(c.ctx, &svidv1.NewJWTSVIDRequest{EntryId: id, Audience: []string{"one"}})
			c.code(err, codes.NotFound, fmt.Sprintf("with entry %q", id))
		}
	})
	s.check(ctx, "federated-bundle-that-never-was", func(c *check) {
		needs(c, s.node)
		_, err := s.node.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "unknown-" + s.mark + ".test"})
		c.code(err, codes.NotFound, "get")
		_, err = s.node.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: s.server.domain.Name()})
		c.code(err, codes.InvalidArgument, "get our own")
	})
}

// authorizationChecks ask who may call what: the operator's socket, strangers,
// nodes, workloads, and workloads that are administrators.
func (s *suite) authorizationChecks(ctx context.Context) {
	key, keyErr := newKey()
	workload := func(c *check, name string, admin bool) *client {
		needs(c, s.node)
		entry := s.create(c, &types.Entry{ParentId: protoID(s.node.svid.ID), SpiffeId: protoID(s.path(name)), Selectors: unixSelector(20), Admin: admin})[0]
		c.ok(keyErr, "make key")
		csr, err := newCSR(key)
		c.ok(err, "make certificate request")
		var svid *x509svid.SVID
		s.eventually(c, func() string {
			response, err := s.node.svids.BatchNewX509SVID(c.ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: entry.GetId(), Csr: csr}}})
			c.ok(err, "new SVID")
			result := response.GetResults()[0]
			if codes.Code(result.GetStatus().GetCode()) == codes.NotFound {
				return "the entry is not authorized"
			}
			c.status(result.GetStatus(), codes.OK, "new SVID")
			svid, err = s.server.accept(result.GetSvid(), key)
			c.ok(err, "judge the SVID")
			return ""
		})
		conn, err := s.server.as(svid)
		c.ok(err, "connect as the workload")
		return newClient(conn)
	}
	operatorCalls := func(caller *client) map[string]func(context.Context) error {
		return map[string]func(context.Context) error{
			"CreateJoinToken": func(ctx context.Context) error {
				_, err := caller.agents.CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: 60})
				return err
			},
			"ListAgents": func(ctx context.Context) error {
				_, err := caller.agents.ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: 1})
				return err
			},
			"ListEntries": func(ctx context.Context) error {
				_, err := caller.entries.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: 1})
				return err
			},
			"MintJWTSVID": func(ctx context.Context) error {
				_, err := caller.svids.MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: protoID(s.path("minted")), Audience: []string{"one"}})
				return err
			},
		}
	}
	nodeCalls := func(caller *client) map[string]func(context.Context) error {
		return map[string]func(context.Context) error{
			"PostStatus": func(ctx context.Context) error {
				_, err := caller.agents.PostStatus(ctx, &agentv1.PostStatusRequest{})
				return err
			},
			"GetAuthorizedEntries": func(ctx context.Context) error {
				_, err := caller.entries.GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
				return err
			},
			"NewJWTSVID": func(ctx context.Context) error {
				_, err := caller.svids.NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: "x", Audience: []string{"one"}})
				return err
			},
		}
	}
	allDenied := func(c *check, calls map[string]func(context.Context) error) {
		for name, call := range calls {
			c.code(call(c.ctx), codes.PermissionDenied, name)
		}
	}
	s.check(ctx, "stranger-may-only-attest-and-read-the-bundle", func(c *check) {
		conn, err := s.server.anonymous()
		c.ok(err, "dial")
		defer conn.Close()
		allDenied(c, operatorCalls(newClient(conn)))
		allDenied(c, nodeCalls(newClient(conn)))
		_, err = newClient(conn).bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.test"})
		c.code(err, codes.PermissionDenied, "GetFederatedBundle")
	})
	s.check(ctx, "node-may-not-operate", func(c *check) {
		needs(c, s.node)
		allDenied(c, operatorCalls(s.node.client))
	})
	s.check(ctx, "operator-socket-is-no-node", func(c *check) {
		allDenied(c, nodeCalls(s.admin))
	})
	s.check(ctx, "workload-is-neither-node-nor-operator", func(c *check) {
		caller := workload(c, "plain", false)
		defer caller.conn.Close()
		allDenied(c, operatorCalls(caller))
		allDenied(c, nodeCalls(caller))
	})
	s.check(ctx, "workload-of-an-admin-entry-may-operate", func(c *check) {
		caller := workload(c, "admin", true)
		defer caller.conn.Close()
		for name, call := range operatorCalls(caller) {
			c.ok(call(c.ctx), name)
		}
		allDenied(c, nodeCalls(caller))
	})
}
