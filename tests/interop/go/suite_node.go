// This file answers: does a node get in, renew and lose its place as it would
// with a SPIRE server?
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	//nolint:gosec // SPIRE names x509pop nodes by this fingerprint
	"crypto/sha1"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func (s *suite) transportChecks(ctx context.Context) {
	s.check(ctx, "server-presents-its-svid", func(c *check) {
		config := tlsconfig.TLSClientConfig(s.server.bundle, tlsconfig.AuthorizeID(s.server.id()))
		config.NextProtos = []string{"h2"}
		conn, err := tls.Dial("tcp", s.server.addr, config)
		c.ok(err, "handshake")
		defer conn.Close()
		state := conn.ConnectionState()
		equal(c, "protocol", state.NegotiatedProtocol, "h2")
		for _, cert := range state.PeerCertificates {
			c.that(!slices.ContainsFunc(s.server.bundle.X509Authorities(), cert.Equal), "the server sends a root")
		}
	})

	s.check(ctx, "tls-1.1-is-refused", func(c *check) {
		config := tlsconfig.TLSClientConfig(s.server.bundle, tlsconfig.AuthorizeID(s.server.id()))
		config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		conn, err := tls.Dial("tcp", s.server.addr, config)
		if err == nil {
			conn.Close()
			c.failf("the handshake succeeded with %s", tls.VersionName(conn.ConnectionState().Version))
		}
		c.that(strings.Contains(err.Error(), "remote error: tls:"), "expected an alert from the server, got: %v", err)
	})

	s.check(ctx, "client-certificate-of-a-stranger-is-refused", func(c *check) {
		anonymous, err := s.server.anonymous()
		c.ok(err, "dial")
		defer anonymous.Close()
		_, err = newClient(anonymous).bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "call without a certificate")
		stranger := selfSigned(c, spiffeid.RequireFromPath(s.server.domain, "/spire/agent/join_token/"+s.mark))
		conn, err := s.server.as(stranger)
		c.ok(err, "dial")
		defer conn.Close()
		_, err = newClient(conn).bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.code(err, codes.Unavailable, "call with a certificate no authority signed")
	})
}

// selfSigned makes an SVID that nothing vouches for.
func selfSigned(c *check, id spiffeid.ID) *x509svid.SVID {
	key, err := newKey()
	c.ok(err, "make key")
	cert := selfSignedCert(c, key, id)
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

func selfSignedCert(c *check, key *ecdsa.PrivateKey, id spiffeid.ID) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "stranger"},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if !id.IsZero() {
		template.URIs = append(template.URIs, id.URL())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	c.ok(err, "sign certificate")
	cert, err := x509.ParseCertificate(der)
	c.ok(err, "parse certificate")
	return cert
}

func (s *suite) attestChecks(ctx context.Context) {
	s.check(ctx, "create-join-token", func(c *check) {
		before := time.Now().Unix()
		token, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
		c.ok(err, "create")
		after := time.Now().Unix()
		c.that(token.GetValue() != "", "the token is empty")
		c.that(token.GetExpiresAt() >= before+600 && token.GetExpiresAt() <= after+601,
			"the token expires %d s from now, expected 600", token.GetExpiresAt()-before)
	})
	s.check(ctx, "create-join-token-with-given-value", func(c *check) {
		token, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600, Token: "given-" + s.mark})
		c.ok(err, "create")
		equal(c, "value", token.GetValue(), "given-"+s.mark)
		node := s.open(c, joinToken(token.GetValue()))
		equal(c, "ID", node.svid.ID.Path(), "/spire/agent/join_token/given-"+s.mark)
	})
	s.check(ctx, "create-join-token-needs-a-ttl", func(c *check) {
		_, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{})
		c.code(err, codes.InvalidArgument, "create without TTL")
	})
	s.check(ctx, "create-join-token-refuses-an-alias-outside-the-trust-domain", func(c *check) {
		_, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{
			Ttl: 600, AgentId: &types.SPIFFEID{TrustDomain: "other.test", Path: "/node"},
		})
		c.code(err, codes.InvalidArgument, "create")
	})

	s.check(ctx, "attest-by-join-token", func(c *check) {
		token, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
		c.ok(err, "create join token")
		node := s.open(c, joinToken(token.GetValue()))
		equal(c, "ID", node.svid.ID.Path(), "/spire/agent/join_token/"+token.GetValue())
		equal(c, "reattestable", node.reattestable, false)
		c.ok(node.probe(c.ctx), "use the SVID")
		s.node = node
	})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s.check(ctx, "node-connects-over-"+strings.ReplaceAll(tls.VersionName(version), " ", "-"), func(c *check) {
			needs(c, s.node)
			config := tlsconfig.MTLSClientConfig(s.node.svid, s.server.bundle, tlsconfig.AuthorizeID(s.server.id()))
			config.MinVersion, config.MaxVersion = version, version
			conn, err := s.server.dial(config)
			c.ok(err, "dial")
			defer conn.Close()
			c.ok((&session{newClient(conn), s.node.attested}).probe(c.ctx), "call")
		})
	}
	s.check(ctx, "attest-by-a-second-join-token", func(c *check) {
		s.other = s.enter(c, nil)
	})
	s.check(ctx, "join-token-attests-once", func(c *check) {
		needs(c, s.node)
		token := strings.TrimPrefix(s.node.svid.ID.Path(), "/spire/agent/join_token/")
		_, err := s.server.attest(c.ctx, joinToken(token))
		c.code(err, codes.InvalidArgument, "attest again with another key")
		c.ok(s.node.probe(c.ctx), "use the SVID of the first attestation")
	})
	s.check(ctx, "unknown-join-token-is-refused", func(c *check) {
		_, err := s.server.attest(c.ctx, joinToken("never-created-"+s.mark))
		c.code(err, codes.InvalidArgument, "attest")
	})
	s.check(ctx, "expired-join-token-is-refused", func(c *check) {
		token, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 1})
		c.ok(err, "create join token")
		waitPast(c, token.GetExpiresAt())
		_, err = s.server.attest(c.ctx, joinToken(token.GetValue()))
		c.code(err, codes.InvalidArgument, "attest")
	})

	s.malformedAttestChecks(ctx)

	s.check(ctx, "unknown-attestor-type-is-refused", func(c *check) {
		_, err := s.server.attest(c.ctx, attestation{method: "no_such_attestor", payload: []byte("x")})
		c.code(err, codes.FailedPrecondition, "attest")
	})
	s.check(ctx, "attest-with-malformed-csr-is-refused", func(c *check) {
		token, err := s.admin.agents.CreateJoinToken(c.ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
		c.ok(err, "create join token")
		_, err = s.server.attestRaw(c.ctx, &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token.GetValue())},
			Params: &agentv1.AgentX509SVIDParams{Csr: []byte("not a certificate request")},
		}, nil)
		c.code(err, codes.InvalidArgument, "attest")
	})
}

func (s *suite) malformedAttestChecks(ctx context.Context) {
	key, err := newKey()
	var csr []byte
	if err == nil {
		csr, err = newCSR(key)
	}
	data := &types.AttestationData{Type: "join_token", Payload: []byte("x")}
	params := &agentv1.AgentX509SVIDParams{Csr: csr}
	for _, t := range []struct {
		name string
		sent *agentv1.AttestAgentRequest_Params
	}{
		{"no-params", nil},
		{"no-data", &agentv1.AttestAgentRequest_Params{Params: params}},
		{"no-svid-params", &agentv1.AttestAgentRequest_Params{Data: data}},
		{"no-csr", &agentv1.AttestAgentRequest_Params{Data: data, Params: &agentv1.AgentX509SVIDParams{}}},
		{"no-type", &agentv1.AttestAgentRequest_Params{Data: &types.AttestationData{Payload: []byte("x")}, Params: params}},
		{"no-payload", &agentv1.AttestAgentRequest_Params{Data: &types.AttestationData{Type: "join_token"}, Params: params}},
	} {
		s.check(ctx, "attest-with-"+t.name+"-is-refused", func(c *check) {
			c.ok(err, "make certificate request")
			_, err := s.server.attestRaw(c.ctx, t.sent, nil)
			c.code(err, codes.InvalidArgument, "attest")
		})
	}
	s.check(ctx, "attest-beginning-with-a-challenge-response-is-refused", func(c *check) {
		conn, err := s.server.anonymous()
		c.ok(err, "dial")
		defer conn.Close()
		stream, err := newClient(conn).agents.AttestAgent(c.ctx)
		c.ok(err, "open stream")
		_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: []byte("x")}})
		_, err = stream.Recv()
		c.code(err, codes.InvalidArgument, "attest")
	})
}

// waitPast waits until the second after an instant has begun.
func waitPast(c *check, unix int64) {
	select {
	case <-c.ctx.Done():
		c.failf("interrupted")
	case <-time.After(time.Until(time.Unix(unix+1, 0))):
	}
}

func (s *suite) statusChecks(ctx context.Context) {
	s.check(ctx, "post-status", func(c *check) {
		needs(c, s.node)
		_, err := s.node.agents.PostStatus(c.ctx, &agentv1.PostStatusRequest{AgentVersion: "interop-" + s.mark})
		c.ok(err, "post")
		_, err = s.node.agents.PostStatus(c.ctx, &agentv1.PostStatusRequest{})
		c.ok(err, "post nothing")
	})
	s.check(ctx, "post-status-refuses-a-long-version", func(c *check) {
		needs(c, s.node)
		_, err := s.node.agents.PostStatus(c.ctx, &agentv1.PostStatusRequest{AgentVersion: strings.Repeat("v", 255)})
		c.ok(err, "post 255 characters")
		_, err = s.node.agents.PostStatus(c.ctx, &agentv1.PostStatusRequest{AgentVersion: strings.Repeat("v", 256)})
		c.code(err, codes.InvalidArgument, "post 256 characters")
		_, err = s.node.agents.PostStatus(c.ctx, &agentv1.PostStatusRequest{AgentVersion: "interop-" + s.mark})
		c.ok(err, "post")
	})
	s.check(ctx, "get-agent", func(c *check) {
		needs(c, s.node)
		agent, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: protoID(s.node.svid.ID)})
		c.ok(err, "get")
		leaf := s.node.svid.Certificates[0]
		equal(c, "ID", idString(agent.GetId()), s.node.svid.ID.String())
		equal(c, "attestation type", agent.GetAttestationType(), "join_token")
		equal(c, "serial number", agent.GetX509SvidSerialNumber(), leaf.SerialNumber.String())
		equal(c, "expiry", agent.GetX509SvidExpiresAt(), leaf.NotAfter.Unix())
		equal(c, "banned", agent.GetBanned(), false)
		equal(c, "can reattest", agent.GetCanReattest(), false)
		equal(c, "version", agent.GetAgentVersion(), "interop-"+s.mark)

		masked, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{
			Id: protoID(s.node.svid.ID), OutputMask: &types.AgentMask{AttestationType: true},
		})
		c.ok(err, "get with a mask")
		equal(c, "masked ID", idString(masked.GetId()), s.node.svid.ID.String())
		equal(c, "masked attestation type", masked.GetAttestationType(), "join_token")
		equal(c, "masked serial number", masked.GetX509SvidSerialNumber(), "")
	})
	s.check(ctx, "get-agent-that-never-was", func(c *check) {
		id := spiffeid.RequireFromPath(s.server.domain, "/spire/agent/join_token/never-"+s.mark)
		_, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: protoID(id)})
		c.code(err, codes.NotFound, "get")
		_, err = s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: protoID(id)})
		c.code(err, codes.NotFound, "delete")
		_, err = s.admin.agents.BanAgent(c.ctx, &agentv1.BanAgentRequest{Id: protoID(id)})
		c.code(err, codes.NotFound, "ban")
		_, err = s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{})
		c.code(err, codes.InvalidArgument, "get without an ID")
	})
	s.check(ctx, "list-and-count-agents", func(c *check) {
		needs(c, s.node)
		needs(c, s.other)
		all := s.listAgents(c, nil, 0)
		paged := s.listAgents(c, nil, 2)
		for _, node := range []*session{s.node, s.other} {
			equal(c, "times listed", all[node.svid.ID.String()], 1)
			equal(c, "times listed in pages", paged[node.svid.ID.String()], 1)
		}
		equal(c, "agents in pages", len(paged), len(all))
		count, err := s.admin.agents.CountAgents(c.ctx, &agentv1.CountAgentsRequest{})
		c.ok(err, "count")
		equal(c, "count", int(count.GetCount()), len(all))

		for _, t := range []struct {
			filter *agentv1.ListAgentsRequest_Filter
			listed int
		}{
			{&agentv1.ListAgentsRequest_Filter{ByAttestationType: "join_token"}, 1},
			{&agentv1.ListAgentsRequest_Filter{ByAttestationType: "no_such_attestor"}, 0},
			{&agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(false)}, 1},
			{&agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(true)}, 0},
			{&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(false)}, 1},
			{&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(true)}, 0},
		} {
			equal(c, fmt.Sprintf("times listed with %v", t.filter), s.listAgents(c, t.filter, 0)[s.node.svid.ID.String()], t.listed)
		}
	})
}

// listAgents counts how often each agent is listed.
func (s *suite) listAgents(c *check, filter *agentv1.ListAgentsRequest_Filter, pageSize int32) map[string]int {
	seen := map[string]int{}
	request := &agentv1.ListAgentsRequest{Filter: filter, PageSize: pageSize}
	for {
		response, err := s.admin.agents.ListAgents(c.ctx, request)
		c.ok(err, "list agents")
		c.that(pageSize == 0 || len(response.GetAgents()) <= int(pageSize), "a page of %d agents, asked for %d", len(response.GetAgents()), pageSize)
		for _, agent := range response.GetAgents() {
			seen[idString(agent.GetId())]++
		}
		if response.GetNextPageToken() == "" {
			return seen
		}
		c.that(pageSize > 0, "a page token although no paging was asked for")
		request.PageToken = response.GetNextPageToken()
	}
}

// renew asks for a new node SVID over the node's current connection.
func (s *suite) renew(c *check, node *session) *attested {
	key, err := newKey()
	c.ok(err, "make key")
	csr, err := newCSR(key)
	c.ok(err, "make certificate request")
	response, err := node.agents.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
	c.ok(err, "renew")
	svid, err := s.server.accept(response.GetSvid(), key)
	c.ok(err, "judge the renewed SVID")
	equal(c, "ID of the renewed SVID", svid.ID, node.svid.ID)
	return &attested{svid, node.reattestable}
}

func (s *suite) renewChecks(ctx context.Context) {
	var renewed *session
	s.check(ctx, "renew-keeps-both-svids-until-the-new-one-is-used", func(c *check) {
		needs(c, s.node)
		next := s.renew(c, s.node)
		c.ok(s.node.probe(c.ctx), "use the old SVID before the new one was used")
		renewed = s.connect(c, next)
		c.ok(renewed.probe(c.ctx), "use the new SVID")
	})
	s.check(ctx, "replaced-svid-is-not-active", func(c *check) {
		needs(c, renewed)
		s.eventually(c, func() string {
			if err := s.node.probe(c.ctx); err == nil {
				return "the replaced SVID is still accepted"
			}
			return ""
		})
		c.denied(s.node.probe(c.ctx), types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "use the replaced SVID")
		_, err := s.node.agents.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{})
		c.denied(err, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "renew with the replaced SVID")
		again := s.connect(c, s.node.attested)
		defer again.conn.Close()
		c.denied(again.probe(c.ctx), types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "use the replaced SVID on a new connection")
		s.node.conn.Close()
		s.node = renewed
	})
	s.check(ctx, "lost-renewal-can-be-repeated", func(c *check) {
		needs(c, renewed)
		s.renew(c, s.node) // its reply never arrives
		next := s.connect(c, s.renew(c, s.node))
		c.ok(next.probe(c.ctx), "use the SVID of the second renewal")
		agent, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: protoID(next.svid.ID)})
		c.ok(err, "get agent")
		equal(c, "serial number", agent.GetX509SvidSerialNumber(), next.svid.Certificates[0].SerialNumber.String())
		s.node = next
	})
	s.check(ctx, "renew-refuses-bad-input", func(c *check) {
		needs(c, s.node)
		for _, t := range []struct {
			what   string
			params *agentv1.AgentX509SVIDParams
		}{
			{"without params", nil},
			{"without CSR", &agentv1.AgentX509SVIDParams{}},
			{"with a malformed CSR", &agentv1.AgentX509SVIDParams{Csr: []byte("not a certificate request")}},
		} {
			_, err := s.node.agents.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{Params: t.params})
			c.code(err, codes.InvalidArgument, "renew "+t.what)
		}
		c.ok(s.node.probe(c.ctx), "use the SVID afterwards")
	})
}

func (s *suite) x509popChecks(ctx context.Context) {
	s.check(ctx, "attest-by-x509pop", func(c *check) {
		s.popNode = s.openPop(c, s.pop)
	})
	if s.popRSA != nil {
		s.check(ctx, "attest-by-x509pop-with-rsa-key", func(c *check) {
			_, isRSA := s.popRSA.key.(*rsa.PrivateKey)
			c.that(isRSA, "the key given for this check is a %T", s.popRSA.key)
			s.openPop(c, s.popRSA).conn.Close()
		})
	}
	s.check(ctx, "x509pop-node-has-its-selectors", func(c *check) {
		needs(c, s.popNode)
		agent, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: protoID(s.popNode.svid.ID)})
		c.ok(err, "get agent")
		equal(c, "attestation type", agent.GetAttestationType(), "x509pop")
		equal(c, "can reattest", agent.GetCanReattest(), true)
		serial := hex.EncodeToString(s.pop.leaf.SerialNumber.Bytes())
		for _, want := range []string{"subject:cn:" + s.pop.leaf.Subject.CommonName, "serialnumber:" + serial, "ca:fingerprint:"} {
			c.that(slices.ContainsFunc(agent.GetSelectors(), func(have *types.Selector) bool {
				return have.GetType() == "x509pop" && strings.HasPrefix(have.GetValue(), want)
			}), "no selector x509pop:%s in %v", want, agent.GetSelectors())
		}
	})
	s.check(ctx, "x509pop-node-must-reattest", func(c *check) {
		needs(c, s.popNode)
		key, err := newKey()
		c.ok(err, "make key")
		csr, err := newCSR(key)
		c.ok(err, "make certificate request")
		_, err = s.popNode.agents.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
		c.denied(err, types.PermissionDeniedDetails_AGENT_MUST_REATTEST, "renew")
	})
	s.check(ctx, "reattestation-replaces-the-svid-at-once", func(c *check) {
		needs(c, s.popNode)
		old := s.popNode
		s.popNode = s.openPop(c, s.pop)
		c.denied(old.probe(c.ctx), types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "use the SVID of the first attestation")
		old.conn.Close()
		c.ok(s.popNode.probe(c.ctx), "use the SVID of the second attestation")
	})
	s.check(ctx, "node-alias-matches-by-selectors", func(c *check) {
		needs(c, s.popNode)
		alias := s.path("pop-alias")
		s.create(c,
			&types.Entry{
				ParentId: protoID(s.server.id()), SpiffeId: protoID(alias),
				Selectors: []*types.Selector{{Type: "x509pop", Value: "subject:cn:" + s.pop.leaf.Subject.CommonName}},
			},
			&types.Entry{ParentId: protoID(alias), SpiffeId: protoID(s.path("under-pop-alias")), Selectors: unixSelector(7)})
		s.eventually(c, func() string {
			return lacks(s.authorized(c, s.popNode), s.path("under-pop-alias").String())
		})
		needs(c, s.other)
		c.that(lacks(s.authorized(c, s.other), s.path("under-pop-alias").String()) != "", "a node without the alias' selectors got its entry")
	})

	s.badX509popChecks(ctx)
}

func (s *suite) badX509popChecks(ctx context.Context) {
	s.check(ctx, "x509pop-with-another-key-is-refused", func(c *check) {
		key, err := newKey()
		c.ok(err, "make key")
		forged := &x509pop{s.pop.leaf, s.pop.chain, key}
		how, err := forged.attestation()
		c.ok(err, "make evidence")
		_, err = s.server.attest(c.ctx, how)
		c.code(err, codes.PermissionDenied, "attest")
	})
	s.check(ctx, "x509pop-response-to-an-older-challenge-is-refused", func(c *check) {
		how, err := s.pop.attestation()
		c.ok(err, "make evidence")
		var replay []byte
		record := how
		record.answer = func(challenge []byte) ([]byte, error) {
			replay, err = how.answer(challenge)
			return replay, err
		}
		node, err := s.server.attest(c.ctx, record)
		c.ok(err, "attest")
		if s.popNode != nil {
			s.popNode.conn.Close()
			s.popNode = s.connect(c, node)
		}
		record.answer = func([]byte) ([]byte, error) { return replay, nil }
		_, err = s.server.attest(c.ctx, record)
		c.code(err, codes.PermissionDenied, "attest with the recorded response")
	})
	s.check(ctx, "x509pop-with-an-untrusted-certificate-is-refused", func(c *check) {
		key, err := newKey()
		c.ok(err, "make key")
		cert := selfSignedCert(c, key, spiffeid.ID{})
		how, err := (&x509pop{cert, [][]byte{cert.Raw}, key}).attestation()
		c.ok(err, "make evidence")
		_, err = s.server.attest(c.ctx, how)
		c.code(err, codes.PermissionDenied, "attest")
	})
	for _, t := range []struct{ name, payload string }{
		{"payload-that-is-not-json", "certificates"},
		{"no-certificates", `{"certificates":[]}`},
		{"certificate-that-is-not-der", `{"certificates":["bm90IGEgY2VydGlmaWNhdGU="]}`},
		{"certificate-that-is-not-base64", `{"certificates":["-----BEGIN"]}`},
	} {
		s.check(ctx, "x509pop-with-"+t.name+"-is-refused", func(c *check) {
			_, err := s.server.attest(c.ctx, attestation{method: "x509pop", payload: []byte(t.payload)})
			c.code(err, codes.InvalidArgument, "attest")
		})
	}
	for _, t := range []struct {
		name, response string
		code           codes.Code
	}{
		{"response-that-is-not-json", "ecdsa_signature", codes.InvalidArgument},
		{"empty-response", "{}", codes.PermissionDenied},
		{"short-nonce", `{"ecdsa_signature":{"nonce":"AA==","r":"AQ==","s":"AQ=="},"rsa_signature":{"nonce":"AA==","signature":"AQ=="}}`, codes.PermissionDenied},
	} {
		s.check(ctx, "x509pop-with-"+t.name+"-is-refused", func(c *check) {
			how, err := s.pop.attestation()
			c.ok(err, "make evidence")
			how.answer = func([]byte) ([]byte, error) { return []byte(t.response), nil }
			_, err = s.server.attest(c.ctx, how)
			c.code(err, t.code, "attest")
		})
	}
	s.check(ctx, "x509pop-leaf-must-come-first", func(c *check) {
		other := selfSignedCert(c, mustKey(c), spiffeid.ID{})
		payload, err := json.Marshal(popEvidence{append([][]byte{other.Raw}, s.pop.chain...)})
		c.ok(err, "make evidence")
		_, err = s.server.attest(c.ctx, attestation{"x509pop", payload, s.pop.respond})
		c.code(err, codes.PermissionDenied, "attest")
	})
}

func mustKey(c *check) *ecdsa.PrivateKey {
	key, err := newKey()
	c.ok(err, "make key")
	return key
}

func (s *suite) openPop(c *check, pop *x509pop) *session {
	how, err := pop.attestation()
	c.ok(err, "make evidence")
	node := s.open(c, how)
	fingerprint := sha1.Sum(pop.leaf.Raw)
	equal(c, "ID", node.svid.ID.Path(), "/spire/agent/x509pop/"+hex.EncodeToString(fingerprint[:]))
	equal(c, "reattestable", node.reattestable, true)
	return node
}

func (s *suite) evictAndBanChecks(ctx context.Context) {
	s.check(ctx, "evicted-node-is-not-attested", func(c *check) {
		needs(c, s.other)
		id := protoID(s.other.svid.ID)
		c.ok(s.other.probe(c.ctx), "use the SVID before")
		_, err := s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: id})
		c.ok(err, "delete agent")
		c.denied(s.other.probe(c.ctx), types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "use the SVID afterwards")
		_, err = s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: id})
		c.code(err, codes.NotFound, "get agent")
		_, err = s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: id})
		c.code(err, codes.NotFound, "delete agent again")
	})
	s.check(ctx, "evicted-x509pop-node-may-come-back", func(c *check) {
		needs(c, s.popNode)
		_, err := s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: protoID(s.popNode.svid.ID)})
		c.ok(err, "delete agent")
		c.denied(s.popNode.probe(c.ctx), types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "use the SVID")
		s.popNode.conn.Close()
		s.popNode = s.openPop(c, s.pop)
		c.ok(s.popNode.probe(c.ctx), "use the new SVID")
	})
	s.check(ctx, "banned-node-is-refused", func(c *check) {
		needs(c, s.popNode)
		_, err := s.admin.agents.BanAgent(c.ctx, &agentv1.BanAgentRequest{Id: protoID(s.popNode.svid.ID)})
		c.ok(err, "ban agent")
		c.denied(s.popNode.probe(c.ctx), types.PermissionDeniedDetails_AGENT_BANNED, "use the SVID")
		_, err = s.popNode.agents.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{})
		c.denied(err, types.PermissionDeniedDetails_AGENT_BANNED, "renew")
		stream, err := s.popNode.entries.SyncAuthorizedEntries(c.ctx)
		c.ok(err, "open sync stream")
		_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{})
		_, err = stream.Recv()
		c.denied(err, types.PermissionDeniedDetails_AGENT_BANNED, "sync")
		again := s.connect(c, s.popNode.attested)
		defer again.conn.Close()
		c.denied(again.probe(c.ctx), types.PermissionDeniedDetails_AGENT_BANNED, "use the SVID on a new connection")
	})
	s.check(ctx, "banned-node-is-listed-as-banned", func(c *check) {
		needs(c, s.popNode)
		id := s.popNode.svid.ID
		agent, err := s.admin.agents.GetAgent(c.ctx, &agentv1.GetAgentRequest{Id: protoID(id)})
		c.ok(err, "get agent")
		equal(c, "banned", agent.GetBanned(), true)
		banned := s.listAgents(c, &agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(true)}, 0)
		equal(c, "times listed among the banned", banned[id.String()], 1)
		free := s.listAgents(c, &agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(false)}, 0)
		equal(c, "times listed among the others", free[id.String()], 0)
	})
	s.check(ctx, "banned-node-may-not-attest", func(c *check) {
		needs(c, s.popNode)
		how, err := s.pop.attestation()
		c.ok(err, "make evidence")
		_, err = s.server.attest(c.ctx, how)
		c.deniedPlainly(err, "attest")
	})
	s.check(ctx, "deleting-a-banned-node-lifts-the-ban", func(c *check) {
		needs(c, s.popNode)
		_, err := s.admin.agents.DeleteAgent(c.ctx, &agentv1.DeleteAgentRequest{Id: protoID(s.popNode.svid.ID)})
		c.ok(err, "delete agent")
		s.popNode.conn.Close()
		s.popNode = s.openPop(c, s.pop)
		c.ok(s.popNode.probe(c.ctx), "use the SVID")
	})
}

// expiryChecks need a server that gives nodes a lifetime of a few seconds.
func (s *suite) expiryChecks(ctx context.Context) {
	var node *session
	s.check(ctx, "expired-node-svid-is-refused-on-an-open-connection", func(c *check) {
		node = s.enter(c, nil)
		leaf := node.svid.Certificates[0]
		c.that(time.Until(leaf.NotAfter) < 30*time.Second, "the server gives nodes %s, too long for this check", time.Until(leaf.NotAfter))
		c.ok(node.probe(c.ctx), "use the SVID while it is valid")
		waitPast(c, leaf.NotAfter.Unix())
		c.denied(node.probe(c.ctx), types.PermissionDeniedDetails_AGENT_EXPIRED, "use the expired SVID")
	})
	s.check(ctx, "expired-node-svid-cannot-be-renewed", func(c *check) {
		needs(c, node)
		key, err := newKey()
		c.ok(err, "make key")
		csr, err := newCSR(key)
		c.ok(err, "make certificate request")
		_, err = node.agents.RenewAgent(c.ctx, &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr}})
		c.denied(err, types.PermissionDeniedDetails_AGENT_EXPIRED, "renew")
	})
	s.check(ctx, "expired-node-svid-opens-no-connection", func(c *check) {
		needs(c, node)
		again := s.connect(c, node.attested)
		defer again.conn.Close()
		c.code(again.probe(c.ctx), codes.Unavailable, "use the expired SVID on a new connection")
	})
}
